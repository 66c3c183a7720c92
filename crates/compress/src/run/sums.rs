//! Second moments of the inputs of linear maps, or of the gradients of their outputs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lowrank_adapters::Observer;
use lowrank_factor::Mat;
use lowrank_factor::matrix::from_row_major;
use lowrank_spec::Site;
use lowrank_spec::names::expert_of;

use crate::error::{CompressError, Result};
use crate::statistics::{InputStatistics, Weighting, Weightings};

/// Rows that are multiplied in `f32` before they are accumulated in `f64`.
const ROWS: usize = 1024;

/// The sums of one input, which several maps may share.
#[derive(Clone, Debug)]
pub(crate) struct Sum {
    /// `Σ x·xᵀ`, the lower triangle.
    gram: Mat<f64>,
    magnitude: Vec<f64>,
    rows: u64,
}

impl Sum {
    pub(crate) fn new(width: usize) -> Self {
        Self { gram: Mat::zeros(width, width), magnitude: vec![0.0; width], rows: 0 }
    }

    fn width(&self) -> usize {
        self.magnitude.len()
    }

    /// Adds rows.
    pub(crate) fn add(&mut self, values: &[f32]) {
        self.accumulate(values, 1.0);
        self.rows += (values.len() / self.width()) as u64;
    }

    /// Subtracts rows again.
    fn remove(&mut self, values: &[f32]) {
        self.accumulate(values, -1.0);
        self.rows -= (values.len() / self.width()) as u64;
    }

    fn accumulate(&mut self, values: &[f32], sign: f64) {
        let width = self.width();
        for chunk in values.chunks(ROWS * width) {
            if let Ok(x) = from_row_major(chunk, chunk.len() / width, width) {
                let product = lowrank_factor::matrix::gram(x); // lower triangle
                for j in 0..width {
                    let into = self.gram.as_mut().col_mut(j).subrows_mut(j, width - j);
                    let from = product.as_ref().col(j).subrows(j, width - j);
                    into.iter_mut().zip(from.iter()).for_each(|(sum, &x)| *sum += sign * f64::from(x));
                }
            }
            for row in chunk.chunks_exact(width) {
                for (sum, x) in self.magnitude.iter_mut().zip(row) {
                    *sum += sign * f64::from(x.abs());
                }
            }
        }
    }

    /// Whether every sum is finite.
    pub(crate) fn is_finite(&self) -> bool {
        self.magnitude.iter().all(|sum| sum.is_finite())
    }

    pub(crate) fn finish(self) -> InputStatistics {
        let Self { gram, magnitude, rows } = self;
        let width = magnitude.len();
        let gram = Mat::from_fn(width, width, |i, j| gram[(i.max(j), i.min(j))]);
        InputStatistics { gram, magnitude, rows }
    }
}

/// Sums by site; sites that receive the same values in every batch share them. A batch may leave out an expert, so
/// sums are shared only between maps of the same expert, or outside of all experts.
#[derive(Debug, Default)]
pub(crate) struct Sums(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    groups: Vec<Group>,
    /// By site: its group.
    by_site: HashMap<usize, usize>,
    /// By site: the expert that it belongs to.
    experts: Vec<Option<String>>,
}

/// A sum and the site that adds to it; the others of the group have received the same values so far.
#[derive(Debug)]
struct Group {
    sum: Sum,
    leader: usize,
    latest: Vec<f32>,
}

impl State {
    fn add(&mut self, site: usize, width: usize, values: Vec<f32>) {
        let known = match self.by_site.get(&site) {
            Some(&index) => index,
            None => {
                let expert = |site: usize| self.experts.get(site).and_then(Option::as_ref);
                let is_same = |group: &Group| {
                    group.sum.width() == width
                        && expert(group.leader) == expert(site)
                        && group.latest == values
                };
                let index = self.groups.iter().position(is_same).unwrap_or_else(|| {
                    let group = Group { sum: Sum::new(width), leader: site, latest: Vec::new() };
                    self.groups.push(group);
                    self.groups.len() - 1
                });
                self.by_site.insert(site, index);
                index
            }
        };
        let group = &mut self.groups[known];
        if group.leader == site {
            group.sum.add(&values);
            group.latest = values;
        } else if group.latest != values {
            // The same in all previous batches, but a different input now.
            let mut sum = group.sum.clone();
            sum.remove(&group.latest);
            sum.add(&values);
            self.groups.push(Group { sum, leader: site, latest: values });
            self.by_site.insert(site, self.groups.len() - 1);
        }
    }
}

impl Observer for Sums {
    fn input(&self, site: usize, [_, width]: [usize; 2], values: &dyn Fn() -> Vec<f32>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(site, width, values());
    }
}

impl Sums {
    /// Assigns sites to experts, before any input is seen.
    pub(crate) fn observe(&self, sites: &[Site]) {
        let expert = |site: &Site| expert_of(&site.path).map(str::to_string);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).experts = sites.iter().map(expert).collect();
    }

    /// Takes the sums out, by site.
    ///
    /// # Errors
    /// Non-finite values, naming the module.
    pub(crate) fn take(
        &self,
        path: impl Fn(usize) -> String,
    ) -> Result<HashMap<usize, Arc<InputStatistics>>> {
        let State { groups, by_site, .. } =
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        // The first in the model's order, which is where the fault lies.
        let broken = groups.iter().filter(|group| !group.sum.is_finite()).map(|group| group.leader).min();
        if let Some(site) = broken {
            return Err(CompressError::Input(format!(
                "'{}' has non-finite inputs in calibration; check the weights before it",
                path(site)
            )));
        }
        let done: Vec<Arc<InputStatistics>> =
            groups.into_iter().map(|group| Arc::new(group.sum.finish())).collect();
        Ok(by_site.into_iter().map(|(site, index)| (site, done[index].clone())).collect())
    }

    /// Takes the sums out, by module path.
    ///
    /// # Errors
    /// As [`Sums::take`].
    pub(crate) fn weightings(&self, path: impl Fn(usize) -> String) -> Result<Weightings> {
        let sums = self.take(&path)?;
        Ok(sums.into_iter().map(|(site, sum)| (path(site), Weighting::Inputs(sum))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(weightings: &Weightings, site: &str) -> Arc<InputStatistics> {
        match &weightings[site] {
            Weighting::Inputs(inputs) => inputs.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sites_of_one_input_share_its_sums() {
        let sums = Sums::default();
        for batch in 0..2 {
            let x = vec![1.0, 2.0, 3.0, 4.0 + batch as f32];
            let y = vec![5.0, 6.0];
            sums.input(0, [2, 2], &|| x.clone());
            sums.input(1, [2, 2], &|| x.clone());
            sums.input(2, [1, 2], &|| y.clone());
        }
        let weightings = sums.weightings(|site| site.to_string()).unwrap();
        let of = |site: &str| inputs(&weightings, site);
        assert!(Arc::ptr_eq(&of("0"), &of("1")) && !Arc::ptr_eq(&of("0"), &of("2")));
        let (x, y) = (of("0"), of("2"));
        assert_eq!((x.rows, y.rows), (4, 2));
        assert_eq!(x.gram, Mat::from_fn(2, 2, |i, j| [[20.0, 31.0], [31.0, 49.0]][i][j]));
        assert_eq!(y.gram, Mat::from_fn(2, 2, |i, j| [[50.0, 60.0], [60.0, 72.0]][i][j]));
        assert_eq!(x.magnitude, [8.0, 13.0]);
    }

    /// Two experts chosen by the same token share nothing: one had tokens before, and has others later.
    #[test]
    fn experts_have_sums_of_their_own() {
        let sums = Sums::default();
        let site = |path: &str| Site {
            path: path.into(),
            layer: Some(0),
            d_input: 1,
            d_output: 1,
            head: false,
            ..Site::default()
        };
        sums.observe(&["l.0.experts.0.w1", "l.0.experts.0.w3", "l.0.experts.1.w1"].map(site));
        for (site, x) in [(0, 1.0), (1, 1.0), (0, 2.0), (1, 2.0), (2, 2.0), (0, 3.0), (1, 3.0)] {
            sums.input(site, [1, 1], &|| vec![x]);
        }
        let weightings = sums.weightings(|site| site.to_string()).unwrap();
        let of = |site: &str| inputs(&weightings, site);
        assert!(Arc::ptr_eq(&of("0"), &of("1")));
        assert_eq!((of("0").rows, of("0").gram[(0, 0)]), (3, 14.0));
        assert_eq!((of("2").rows, of("2").gram[(0, 0)]), (1, 4.0));
    }

    #[test]
    fn sites_of_one_input_in_the_first_batch_alone_part() {
        let sums = Sums::default();
        // A query of first tokens equals the keys' input if every sequence has one token.
        for (query, key) in
            [([1.0, 2.0].to_vec(), [1.0, 2.0].to_vec()), (vec![3.0, 4.0], vec![3.0, 4.0, 5.0, 6.0])]
        {
            sums.input(0, [query.len() / 2, 2], &|| query.clone());
            sums.input(1, [key.len() / 2, 2], &|| key.clone());
        }
        let weightings = sums.weightings(|site| site.to_string()).unwrap();
        let (query, key) = (inputs(&weightings, "0"), inputs(&weightings, "1"));
        assert_eq!((query.rows, key.rows), (2, 3));
        assert_eq!(query.gram, Mat::from_fn(2, 2, |i, j| [[10.0, 14.0], [14.0, 20.0]][i][j]));
        assert_eq!(key.gram, Mat::from_fn(2, 2, |i, j| [[35.0, 44.0], [44.0, 56.0]][i][j]));
        assert_eq!(key.magnitude, [9.0, 12.0]);
    }
}
