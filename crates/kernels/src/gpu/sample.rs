//! Choosing a token for each row of logits, a cube for each row.
//!
//! Nothing is sorted: each cutoff, and the draw itself, is a place in the order of the tokens, which is found digit by digit
//! of the logits' bits from the mass (or the number) of the tokens above it. Sums have one order, so that a seed repeats
//! itself.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::calculate_cube_count_elemwise;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{by_row, dims2, elements, fit, owned, packed};
use super::math::{UNITS, cube_sum};
use super::upload::upload;
use crate::spec::SampleSpec;

/// The key below those of all finite logits.
const LEAST: u32 = 0x007f_ffff;

/// The key above them.
const END: u32 = 0xff80_0000;

/// Where a unit has not found anything.
const NOWHERE: u32 = u32::MAX;

/// Bits of a digit, and its values.
const DIGIT: u32 = 4;
const DIGITS: usize = 1 << DIGIT;

/// Units that sum up the mass of one digit.
const SHARE: usize = UNITS / DIGITS;

/// Logits that a unit reads at once, so that it does not wait for one after the other.
const BATCH: usize = 4;

const LEVELS: usize = UNITS.ilog2() as usize;

/// The most classes whose number a float holds.
const MAX_WIDTH: usize = 1 << 24;

/// The most tokens that a cube keeps for itself once the others are left out.
const KEPT: usize = 512;

/// In a word of the edits: the logit is excluded, and not penalised.
const EXCLUDED: u32 = 1 << 31;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Options {
    greedy: bool,
    top_k: bool,
    /// Whether `top_k` leaves at most [`KEPT`] tokens.
    few: bool,
    top_p: bool,
    min_p: bool,
}

/// A place in the order of the tokens: those with a larger key, and of those with this one the first `count`.
#[derive(CubeType, Clone, Copy)]
struct Place {
    key: u32,
    count: u32,
}

/// An integer in the order of the floats, as `f32::total_cmp` has it.
#[cube]
fn key_of(bits: u32) -> u32 {
    select(bits >> 31u32 == 1u32, bits ^ 0xffff_ffffu32, bits ^ 0x8000_0000u32)
}

/// The keys of a unit's next logits; zero, which is below all keys of finite ones, past the last of the row.
#[cube]
fn keys_from(logits: &Slice<u32>, at: usize, width: usize, keys: &mut Array<u32>, #[comptime] greedy: bool) {
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
fn logit_of(key: u32) -> f32 {
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
fn search(
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
fn keep(
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
fn find(logits: &Slice<u32>, width: usize, place: Place, counts: &mut SharedMemory<u32>) -> u32 {
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

/// Where the token of a draw is among those within a limit, as [`find`] has it.
#[cube]
fn draw_from(
    logits: &Slice<u32>,
    width: usize,
    limit: Place,
    top: f32,
    inverse: f32,
    top_p: f32,
    least_difference: f32,
    draw: f32,
    sums: &mut SharedMemory<f32>,
    shares: &mut SharedMemory<f32>,
    counts: &mut SharedMemory<u32>,
    #[comptime] options: Options,
) -> u32 {
    let limit = if comptime!(options.top_p) {
        search(logits, width, limit, top, inverse, top_p, sums, shares, false, false)
    } else {
        limit
    };
    let limit = if comptime!(options.min_p) {
        let least = top + least_difference;
        // Both zeros are equal.
        let below = select(least == 0.0, 0x7fff_ffffu32, key_of(u32::reinterpret(least))) - 1u32;
        let stricter = below >= limit.key;
        Place { key: select(stricter, below, limit.key), count: select(stricter, 0u32, limit.count) }
    } else {
        limit
    };
    let drawn = search(logits, width, limit, top, inverse, draw, sums, shares, false, true);
    find(logits, width, drawn, counts)
}

#[cube(launch_unchecked)]
fn sample_kernel(
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
            let draw = f32::reinterpret(draws[row]);
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
                let found = draw_from(
                    &kept.to_slice(),
                    n,
                    all,
                    top,
                    inverse,
                    top_p,
                    least_difference,
                    draw,
                    &mut sums,
                    &mut shares,
                    &mut keys,
                    options,
                );
                if found != NOWHERE {
                    ids[row] = kept_ids[found as usize] as i32;
                }
            } else {
                let found = draw_from(
                    &logits,
                    width,
                    limit,
                    top,
                    inverse,
                    top_p,
                    least_difference,
                    draw,
                    &mut sums,
                    &mut shares,
                    &mut keys,
                    options,
                );
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
fn edit_kernel(logits: &mut Array<u32>, words: &Array<u32>, first: usize, end: usize, penalty: f32) {
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

/// Whether the kernels take these logits.
pub(super) fn fits<R: CubeRuntime>(logits: &CubeTensor<R>) -> bool {
    fit([logits]) && elements(logits) > 0 && dims2(logits)[1] <= MAX_WIDTH
}

/// The token of each row, -1 where no logit is finite; a row of the spec for each is the caller's to check.
pub(super) fn sample<R: CubeRuntime>(logits: CubeTensor<R>, spec: &SampleSpec) -> CubeTensor<R> {
    let [rows, width] = dims2(&logits);
    let (client, device) = (logits.client.clone(), logits.device.clone());
    // The draws, and behind them the edits.
    let mut words: Vec<u32> = spec.rows.iter().map(|row| (row.draw as f32).to_bits()).collect();
    words.extend(edits(spec, width));
    let table = upload(&words, &logits);
    let n_edits = words.len() - rows;
    let logits = if n_edits > 0 { owned(logits) } else { packed(logits) };
    if n_edits > 0 {
        let dim = CubeDim::new_1d(UNITS as u32);
        let count = calculate_cube_count_elemwise(&client, n_edits, dim);
        // SAFETY: the edits lie behind the draws, each names another logit within its row, and nothing else has the logits.
        unsafe {
            edit_kernel::launch_unchecked(
                &client,
                count,
                dim,
                logits.clone().into_array_arg(),
                ArrayArg::from_raw_parts(table.clone(), words.len()),
                rows,
                words.len(),
                spec.repetition_penalty,
            );
        }
    }
    let ids = empty_device_contiguous_dtype(client.clone(), device, [rows].into(), DType::I32);
    let top_k = spec.top_k.filter(|&k| k < width);
    let options = Options {
        greedy: spec.temperature == 0.0,
        top_k: top_k.is_some(),
        few: top_k.is_some_and(|k| k <= KEPT),
        top_p: spec.top_p < 1.0,
        min_p: spec.min_p > 0.0,
    };
    let (count, dim) = by_row(rows);
    // SAFETY: logits are [rows, width], and there is a draw and an id for each row; cubes and units past them do nothing.
    unsafe {
        sample_kernel::launch_unchecked(
            &client,
            count,
            dim,
            logits.into_array_arg(),
            ArrayArg::from_raw_parts(table, words.len()),
            ids.clone().into_array_arg(),
            rows,
            width,
            // Neither zero nor infinite, whose products with differences may be no number.
            ((1.0 / spec.temperature) as f32).clamp(f32::MIN_POSITIVE, f32::MAX),
            top_k.unwrap_or(width) as f32,
            spec.top_p as f32,
            (spec.temperature * spec.min_p.ln()) as f32,
            options,
        );
    }
    ids
}

/// The logits that change, each once; those that are excluded are not penalised.
fn edits(spec: &SampleSpec, width: usize) -> Vec<u32> {
    let mut edits = Vec::new();
    for (row, choice) in spec.rows.iter().enumerate() {
        let excluded = choice.excluded.iter().map(|id| (*id, false));
        let penalised = choice.penalised.iter().map(|id| (*id, true));
        let mut ids: Vec<(u32, bool)> =
            excluded.chain(penalised).filter(|(id, _)| (*id as usize) < width).collect();
        ids.sort_unstable();
        ids.dedup_by_key(|(id, _)| *id);
        let word = |(id, is_penalised): (u32, bool)| {
            (row * width) as u32 + id + if is_penalised { 0 } else { EXCLUDED }
        };
        edits.extend(ids.into_iter().map(word));
    }
    edits
}
