//! The kernels: the choice of a token, and the logits that change before it.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::places::{
    BATCH, DIGITS, END, LEAST, NOWHERE, Place, find, keep, key_of, keys_from, logit_of, search,
};
use crate::gpu::math::UNITS;

const LEVELS: usize = UNITS.ilog2() as usize;

/// The most tokens that a cube keeps for itself once the others are left out.
pub(super) const KEPT: usize = 512;

/// In a word of the edits: the logit is excluded, and not penalised.
pub(super) const EXCLUDED: u32 = 1 << 31;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Options {
    pub(super) greedy: bool,
    pub(super) top_k: bool,
    /// Whether `top_k` leaves at most [`KEPT`] tokens.
    pub(super) few: bool,
    pub(super) top_p: bool,
    pub(super) min_p: bool,
}

/// What the choice of a row's token depends on beside the logits within a limit.
#[derive(CubeType, Clone, Copy)]
struct Draw {
    /// The largest logit.
    top: f32,
    /// One over the temperature.
    inverse: f32,
    top_p: f32,
    /// What `min_p` leaves between a logit and the largest.
    least_difference: f32,
    /// A uniform number.
    uniform: f32,
}

/// Where the token of a draw is among those within a limit, as [`find`] has it.
#[cube]
fn draw_from(
    logits: &Slice<u32>,
    width: usize,
    limit: Place,
    draw: Draw,
    sums: &mut SharedMemory<f32>,
    shares: &mut SharedMemory<f32>,
    counts: &mut SharedMemory<u32>,
    #[comptime] options: Options,
) -> u32 {
    let limit = if comptime!(options.top_p) {
        search(logits, width, limit, draw.top, draw.inverse, draw.top_p, sums, shares, false, false)
    } else {
        limit
    };
    let limit = if comptime!(options.min_p) {
        let least = draw.top + draw.least_difference;
        // Both zeros are equal.
        let below = select(least == 0.0, 0x7fff_ffffu32, key_of(u32::reinterpret(least))) - 1u32;
        let stricter = below >= limit.key;
        Place { key: select(stricter, below, limit.key), count: select(stricter, 0u32, limit.count) }
    } else {
        limit
    };
    let drawn = search(logits, width, limit, draw.top, draw.inverse, draw.uniform, sums, shares, false, true);
    find(logits, width, drawn, counts)
}

#[cube(launch_unchecked)]
pub(super) fn sample_kernel(
    logits: &Array<u32>,
    draws: &Array<u32>,
    ids: &mut Array<i32>,
    rows: usize,
    width: usize,
    inverse: f32,
    top_k: f32,
    top_p: f32,
    least_difference: f32,
    #[comptime] options: Options,
) {
    let row = CUBE_POS as usize;
    if row < rows {
        let mut keys = SharedMemory::<u32>::new(UNITS);
        let mut places = SharedMemory::<u32>::new(UNITS);
        let unit = UNIT_POS as usize;
        let logits = logits.slice(row * width, row * width + width);
        let mut best = LEAST.runtime();
        let mut place = 0u32;
        let mut own_keys = Array::<u32>::new(BATCH);
        let mut at = unit;
        while at < width {
            keys_from(&logits, at, width, &mut own_keys, options.greedy);
            #[unroll]
            for i in 0..BATCH {
                let key = own_keys[i];
                if key > best && key < END {
                    best = key;
                    place = (at + i * UNITS) as u32;
                }
            }
            at += UNITS * BATCH;
        }
        keys[unit] = best;
        places[unit] = place;
        sync_cube();
        #[unroll]
        for level in 0..LEVELS {
            let half = comptime!(UNITS >> (level + 1));
            if unit < half {
                let (own, other) = (keys[unit], keys[unit + half]);
                let (own_place, other_place) = (places[unit], places[unit + half]);
                if other > own || (other == own && other_place < own_place) {
                    keys[unit] = other;
                    places[unit] = other_place;
                }
            }
            sync_cube();
        }
        let top_key = keys[0];
        let top_place = places[0];
        if top_key == LEAST {
            if unit == 0 {
                ids[row] = -1;
            }
        } else if comptime!(options.greedy) {
            if unit == 0 {
                ids[row] = top_place as i32;
            }
        } else {
            // Until the unit that finds the token has written its own.
            if unit == 0 {
                ids[row] = -1;
            }
            let mut sums = SharedMemory::<f32>::new(UNITS * DIGITS);
            let mut shares = SharedMemory::<f32>::new(UNITS);
            let top = logit_of(top_key);
            let draw = Draw { top, inverse, top_p, least_difference, uniform: f32::reinterpret(draws[row]) };
            let all = Place { key: LEAST.runtime(), count: 0u32.runtime() };
            let limit = if comptime!(options.top_k) {
                search(&logits, width, all, top, inverse, top_k, &mut sums, &mut shares, true, false)
            } else {
                all
            };
            if comptime!(options.few) {
                let mut kept = SharedMemory::<u32>::new(KEPT);
                let mut kept_ids = SharedMemory::<u32>::new(KEPT);
                let n = keep(&logits, width, limit, &mut keys, &mut places, &mut kept, &mut kept_ids);
                let found =
                    draw_from(&kept.to_slice(), n, all, draw, &mut sums, &mut shares, &mut keys, options);
                if found != NOWHERE {
                    ids[row] = kept_ids[found as usize] as i32;
                }
            } else {
                let found =
                    draw_from(&logits, width, limit, draw, &mut sums, &mut shares, &mut keys, options);
                if found != NOWHERE {
                    ids[row] = found as i32;
                }
            }
        }
    }
}

/// Bits of the float nearest to a quotient of positive ones: a device's own division may be off by an ulp. Quotients that
/// are subnormal are zero, and `x` stays as it is where it is subnormal or not finite.
#[cube]
fn quotient(x: u32, by: u32) -> u32 {
    let exponent = x >> 23u32;
    let mut bits = x;
    if exponent > 0u32 && exponent < 255u32 {
        let divisor = (by & 0x007f_ffffu32) | 0x0080_0000u32;
        let mut left = (x & 0x007f_ffffu32) | 0x0080_0000u32;
        let mut power = exponent as i32 + 127i32 - (by >> 23u32) as i32;
        if left < divisor {
            left = left << 1u32;
            power -= 1i32;
        }
        let mut digits = 0u32;
        for _bit in 0..24u32 {
            digits = digits << 1u32;
            if left >= divisor {
                left -= divisor;
                digits = digits | 1u32;
            }
            left = left << 1u32;
        }
        if left > divisor || (left == divisor && digits & 1u32 == 1u32) {
            digits += 1u32;
        }
        if power <= 0i32 {
            bits = 0u32;
        } else if power >= 255i32 {
            bits = 0x7f80_0000u32;
        } else {
            bits = ((power as u32) << 23u32) + (digits - 0x0080_0000u32);
        }
    }
    bits
}

#[cube(launch_unchecked)]
pub(super) fn edit_kernel(
    logits: &mut Array<u32>,
    words: &Array<u32>,
    first: usize,
    end: usize,
    penalty: f32,
) {
    if first + ABSOLUTE_POS < end {
        let word = words[first + ABSOLUTE_POS];
        let at = (word & 0x7fff_ffffu32) as usize;
        if word >= EXCLUDED {
            logits[at] = 0xff80_0000u32;
        } else {
            let bits = logits[at];
            if bits > 0u32 && bits < 0x8000_0000u32 {
                logits[at] = quotient(bits, u32::reinterpret(penalty));
            } else {
                logits[at] = u32::reinterpret(f32::reinterpret(bits) * penalty);
            }
        }
    }
}
