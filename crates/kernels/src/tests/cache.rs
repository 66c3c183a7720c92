//! Rows written into a table.

use burn::tensor::{DType, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use rstest::rstest;

use super::{on_backends, random, values};
use crate::kernels::Kernels;
use crate::ops::write_rows;

#[test]
fn rows_go_where_the_spans_say() {
    fn check<B: Kernels>() {
        let (table, rows) = (random::<B, 2>([7, 5], 1), random::<B, 2>([4, 5], 2));
        let mut expected = values(table.clone());
        let new = values(rows.clone());
        expected[5..10].copy_from_slice(&new[..5]);
        expected[20..35].copy_from_slice(&new[5..]);
        let written = write_rows(table.clone(), rows.clone(), &[[1, 0, 1], [4, 1, 3], [0, 4, 0]]);
        assert_eq!(values(written), expected);
        // Who else has the table keeps what was in it, and other types go the way of burn's operations.
        assert_eq!(values(table.clone()), values(random::<B, 2>([7, 5], 1)));
        let turned = rows.transpose();
        let written = write_rows(random::<B, 2>([5, 4], 3), turned.clone(), &[[0, 0, 5]]);
        assert_eq!(values(written), values(turned.clone()));
        // GPUs have no doubles.
        let device = Default::default();
        let other = if B::supports_dtype(&device, DType::F64) { DType::F64 } else { DType::F16 };
        let turned = turned.cast(other);
        let written = write_rows(random::<B, 2>([6, 4], 4).cast(other), turned.clone(), &[[1, 0, 5]]);
        assert_eq!(values(written.narrow(0, 1, 5)), values(turned));
    }
    on_backends!(check());
    check::<Autodiff<Flex>>();
}

/// Widths that fill no cube, spans in any order, ones without rows, and rows that two spans name.
#[rstest]
#[case(1, &[[3, 0, 2], [0, 2, 1]])]
#[case(37, &[[90, 5, 10], [0, 0, 4], [50, 4, 0], [4, 15, 30]])]
#[case(37, &[[100, 45, 0]])]
#[case(130, &[])]
#[case(130, &[[0, 0, 5], [3, 10, 4]])]
fn rows_are_written_as_by_slices(#[case] width: usize, #[case] spans: &[[usize; 3]]) {
    fn check<B: Kernels>(width: usize, spans: &[[usize; 3]]) {
        let (table, rows) = (random::<B, 2>([100, width], 1), random::<B, 2>([45, width], 2));
        let expected = spans.iter().fold(table.clone(), |table, &[to, from, count]| {
            if count == 0 {
                return table;
            }
            table.slice_assign([to..to + count, 0..width], rows.clone().slice([from..from + count, 0..width]))
        });
        assert_eq!(values(write_rows(table, rows, spans)), values(expected));
    }
    on_backends!(check(width, spans));
}

/// More elements than one pass of a launch's units, and more spans than a few.
#[test]
fn many_rows_are_written() {
    fn check<B: Kernels>() {
        let rows = random::<B, 2>([1100, 515], 1);
        let spans: Vec<[usize; 3]> = (0..300).map(|i| [i * 4, i, 1]).chain([[1200, 0, 1100]]).collect();
        let zeros = Tensor::zeros([2300, 515], (&rows.device(), rows.dtype()));
        let table = values(write_rows(zeros, rows.clone(), &spans));
        let rows = values(rows);
        assert_eq!(table[1200 * 515..], rows);
        assert!((0..300).all(|i| table[i * 4 * 515..][..515] == rows[i * 515..][..515]));
        assert!((0..300).all(|i| table[(i * 4 + 1) * 515..][..3 * 515].iter().all(|x| *x == 0.0)));
    }
    on_backends!(check());
}

#[test]
fn a_table_of_one_handle_is_written_in_place() {
    let mut table = Tensor::<Flex, 2>::zeros([100, 8], &Default::default());
    let place = |table: &Tensor<Flex, 2>| table.clone().into_primitive().tensor().storage::<f32>().as_ptr();
    let before = place(&table);
    for row in 0..5 {
        table = write_rows(table, random([1, 8], 1), &[[row, 0, 1]]);
        assert_eq!(place(&table), before);
    }
}

#[test]
#[should_panic(expected = "write_rows: spans [[6, 0, 2]] of [2, 5] into [7, 5]")]
fn a_span_past_the_end_is_named() {
    write_rows(random::<Flex, 2>([7, 5], 1), random([2, 5], 2), &[[6, 0, 2]]);
}
