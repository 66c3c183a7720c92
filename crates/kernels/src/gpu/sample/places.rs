//! Places in the order of the tokens, found without sorting: digit by digit of the logits' bits.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use crate::gpu::math::{UNITS, cube_sum};

/// The key below those of all finite logits.
pub(super) const LEAST: u32 = 0x007f_ffff;

/// The key above them.
pub(super) const END: u32 = 0xff80_0000;

/// Where a unit has not found anything.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Bits of a digit, and its values.
const DIGIT: u32 = 4;
pub(super) const DIGITS: usize = 1 << DIGIT;

/// Units that sum up the mass of one digit.
const SHARE: usize = UNITS / DIGITS;

/// Logits that a unit reads at once, so that it does not wait for one after the other.
pub(super) const BATCH: usize = 4;

/// A place in the order of the tokens: those with a larger key, and of those with this one the first `count`.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub(super) key: u32,
    pub(super) count: u32,
}

/// An integer in the order of the floats, as `f32::total_cmp` has it.
#[cube]
pub(super) fn key_of(bits: u32) -> u32 {
    select(bits >> 31u32 == 1u32, bits ^ 0xffff_ffffu32, bits ^ 0x8000_0000u32)
}

/// The keys of a unit's next logits; zero, which is below all keys of finite ones, past the last of the row.
#[cube]
pub(super) fn keys_from(
    logits: &Slice<u32>,
    at: usize,
    width: usize,
    keys: &mut Array<u32>,
    #[comptime] greedy: bool,
) {
    #[unroll]
    for i in 0..BATCH {
        let place = at + i * UNITS;
        let mut bits = logits[min(place, width - 1)];
        if comptime!(greedy) {
            // Both zeros are equal.
            bits = select(bits == 0x8000_0000u32, 0u32, bits);
        }
        keys[i] = select(place < width, key_of(bits), 0u32);
    }
}

/// The logit of a key.
#[cube]
pub(super) fn logit_of(key: u32) -> f32 {
    f32::reinterpret(select(key >> 31u32 == 1u32, key ^ 0x8000_0000u32, key ^ 0xffff_ffffu32))
}

/// What a token counts for: its probability relative to the most likely one's, or one.
#[cube]
fn weight(key: u32, top: f32, inverse: f32, #[comptime] counting: bool) -> f32 {
    let mut weight = 1.0f32;
    if comptime!(!counting) {
        let difference = logit_of(key) - top;
        weight = select(difference == 0.0, 1.0, (difference * inverse).exp());
    }
    weight
}

/// The first place whose mass is at least `part` of the mass within the limit (more than that where `strict`), or whose
/// number of tokens is at least `part`.
#[cube]
pub(super) fn search(
    logits: &Slice<u32>,
    width: usize,
    limit: Place,
    top: f32,
    inverse: f32,
    part: f32,
    sums: &mut SharedMemory<f32>,
    shares: &mut SharedMemory<f32>,
    #[comptime] counting: bool,
    #[comptime] strict: bool,
) -> Place {
    let unit = UNIT_POS as usize;
    let limit_mass = weight(limit.key, top, inverse, counting) * f32::cast_from(limit.count);
    let mut keys = Array::<u32>::new(BATCH);
    let mut prefix = 0u32;
    // The mass above the keys that begin with the prefix.
    let mut above = 0.0f32;
    let mut goal = part;
    for level in 0..8u32 {
        let shift = 28u32 - level * DIGIT;
        let mut own = Array::<f32>::new(DIGITS);
        #[unroll]
        for i in 0..DIGITS {
            own[i] = 0.0;
        }
        if unit == 0 && (limit.key >> shift) >> DIGIT == prefix {
            let digit = (limit.key >> shift) & 15u32;
            #[unroll]
            for i in 0..DIGITS {
                own[i] = select(digit == comptime!(i as u32), limit_mass, 0.0);
            }
        }
        let mut at = unit;
        while at < width {
            keys_from(logits, at, width, &mut keys, false);
            #[unroll]
            for i in 0..BATCH {
                let key = keys[i];
                if key > limit.key && key < END && (key >> shift) >> DIGIT == prefix {
                    let mass = weight(key, top, inverse, counting);
                    let digit = (key >> shift) & 15u32;
                    #[unroll]
                    for j in 0..DIGITS {
                        own[j] = own[j] + select(digit == comptime!(j as u32), mass, 0.0);
                    }
                }
            }
            at += UNITS * BATCH;
        }
        sync_cube();
        #[unroll]
        for i in 0..DIGITS {
            sums[i * UNITS + unit] = own[i];
        }
        sync_cube();
        let first = unit / SHARE * UNITS + unit % SHARE;
        let mut share = 0.0f32;
        for i in 0..DIGITS {
            share += sums[first + i * SHARE];
        }
        shares[unit] = share;
        sync_cube();
        let mut total = 0.0f32;
        #[unroll]
        for i in 0..DIGITS {
            let mut mass = 0.0f32;
            for j in 0..SHARE {
                mass += shares[i * SHARE + j];
            }
            own[i] = mass;
            total += mass;
        }
        if comptime!(!counting) {
            if level == 0u32 {
                goal = total * part;
            }
        }
        // The last digit that any token has, if rounding leaves the goal out of reach.
        let mut running = above;
        let mut digit = 0u32;
        let mut reached = 0u32;
        #[unroll]
        for i in 0..DIGITS {
            let mass = own[comptime!(DIGITS - 1 - i)];
            if reached == 0u32 && mass > 0.0 {
                digit = comptime!((DIGITS - 1 - i) as u32).runtime();
                above = running;
                running += mass;
                if comptime!(strict) {
                    reached = select(running > goal, 1u32, 0u32);
                } else {
                    reached = select(running >= goal, 1u32, 0u32);
                }
            }
        }
        prefix = (prefix << DIGIT) | digit;
    }
    let mut same = 0.0f32;
    let mut at = unit;
    while at < width {
        keys_from(logits, at, width, &mut keys, false);
        #[unroll]
        for i in 0..BATCH {
            same += select(keys[i] == prefix, 1.0, 0.0);
        }
        at += UNITS * BATCH;
    }
    let same = cube_sum(same, shares);
    let most = select(prefix == limit.key, f32::cast_from(limit.count), same);
    let mut count = goal - above;
    if comptime!(!counting) {
        count = count / weight(prefix, top, inverse, counting);
    }
    if comptime!(strict) {
        count = count.floor() + 1.0;
    } else {
        count = count.ceil();
    }
    count = select(count > most, most, count);
    count = select(count >= 1.0, count, 1.0);
    Place { key: prefix, count: u32::cast_from(count) }
}

/// The logits at or before a place in their order, and where each was; returns their number.
#[cube]
pub(super) fn keep(
    logits: &Slice<u32>,
    width: usize,
    limit: Place,
    more: &mut SharedMemory<u32>,
    same: &mut SharedMemory<u32>,
    kept: &mut SharedMemory<u32>,
    kept_ids: &mut SharedMemory<u32>,
) -> usize {
    let unit = UNIT_POS as usize;
    let chunk = (width + UNITS - 1) / UNITS;
    let first = min(unit * chunk, width);
    let end = min(first + chunk, width);
    let mut own_more = 0u32;
    let mut own_same = 0u32;
    for at in first..end {
        let key = key_of(logits[at]);
        own_more += select(key > limit.key && key < END, 1u32, 0u32);
        own_same += select(key == limit.key, 1u32, 0u32);
    }
    sync_cube();
    more[unit] = own_more;
    same[unit] = own_same;
    sync_cube();
    let mut seen_more = 0u32;
    let mut seen_same = 0u32;
    let mut all_more = 0u32;
    for other in 0..UNITS {
        seen_more += select(other < unit, more[other], 0u32);
        seen_same += select(other < unit, same[other], 0u32);
        all_more += more[other];
    }
    for at in first..end {
        let bits = logits[at];
        let key = key_of(bits);
        let is_more = key > limit.key && key < END;
        let is_same = key == limit.key && seen_same < limit.count;
        if is_more || is_same {
            let place = (seen_more + min(seen_same, limit.count)) as usize;
            kept[place] = bits;
            kept_ids[place] = at as u32;
        }
        seen_more += select(is_more, 1u32, 0u32);
        seen_same += select(key == limit.key, 1u32, 0u32);
    }
    sync_cube();
    (all_more + limit.count) as usize
}

/// Where the token at a place in the order is, in the unit that finds it; [`NOWHERE`] in the others.
#[cube]
pub(super) fn find(logits: &Slice<u32>, width: usize, place: Place, counts: &mut SharedMemory<u32>) -> u32 {
    // Each unit has neighbouring tokens, so that those of one key are counted in their order.
    let unit = UNIT_POS as usize;
    let chunk = (width + UNITS - 1) / UNITS;
    let first = min(unit * chunk, width);
    let end = min(first + chunk, width);
    let mut own = 0u32;
    for at in first..end {
        own += select(key_of(logits[at]) == place.key, 1u32, 0u32);
    }
    sync_cube();
    counts[unit] = own;
    sync_cube();
    let mut seen = 0u32;
    for other in 0..unit {
        seen += counts[other];
    }
    let mut found = NOWHERE.runtime();
    if seen < place.count && place.count <= seen + own {
        for at in first..end {
            if key_of(logits[at]) == place.key {
                seen += 1u32;
                if seen == place.count {
                    found = at as u32;
                }
            }
        }
    }
    found
}
