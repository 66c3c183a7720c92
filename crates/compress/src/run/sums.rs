//! Second moments of the inputs of linear maps.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use lowrank_adapters::{Activations, Observer};
use lowrank_spec::Site;
use lowrank_spec::names::expert_of;

use super::moments::Moments;
use crate::error::{CompressError, Result};
use crate::statistics::{InputStatistics, Weighting, Weightings};

/// Sums by site; sites that receive the same values in every batch share them. A batch may leave out an expert, so
/// sums are shared only between maps of the same expert, or outside of all experts.
#[derive(Debug)]
pub(crate) struct Sums<M: Moments>(Mutex<State<M>>);

#[derive(Debug)]
struct State<M: Moments> {
    groups: Vec<Group<M>>,
    /// By site: its group.
    by_site: HashMap<usize, usize>,
    /// By site: the expert that it belongs to.
    experts: Vec<Option<String>>,
}

/// A sum and the site that adds to it; the others of the group have received the same values so far.
#[derive(Debug)]
struct Group<M: Moments> {
    sum: M,
    leader: usize,
    latest: M::Rows,
}

impl<M: Moments> Default for State<M> {
    fn default() -> Self {
        Self { groups: Vec::new(), by_site: HashMap::new(), experts: Vec::new() }
    }
}

impl<M: Moments> State<M> {
    fn add(&mut self, site: usize, width: usize, rows: M::Rows) {
        let Some(&known) = self.by_site.get(&site) else {
            let expert = |site: usize| self.experts.get(site).and_then(Option::as_ref);
            let is_same = |group: &Group<M>| {
                group.sum.width() == width
                    && expert(group.leader) == expert(site)
                    && M::are_equal(&group.latest, &rows)
            };
            let index = self.groups.iter().position(is_same).unwrap_or_else(|| {
                let mut sum = M::beside(&rows, width);
                sum.add(&rows);
                self.groups.push(Group { sum, leader: site, latest: rows });
                self.groups.len() - 1
            });
            self.by_site.insert(site, index);
            return;
        };
        let group = &mut self.groups[known];
        if group.leader == site {
            group.sum.add(&rows);
            group.latest = rows;
        } else if !M::are_equal(&group.latest, &rows) {
            // The same in all previous batches, but a different input now.
            let mut sum = group.sum.clone();
            sum.remove(&group.latest);
            sum.add(&rows);
            self.groups.push(Group { sum, leader: site, latest: rows });
            self.by_site.insert(site, self.groups.len() - 1);
        }
    }
}

impl<M: Moments> Observer for Sums<M> {
    fn input(&self, site: usize, x: &dyn Activations) {
        let [_, width] = x.shape();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(site, width, M::rows(x));
    }
}

impl<M: Moments> Default for Sums<M> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<M: Moments> Sums<M> {
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::any::Any;
    use std::cell::Cell;
    use std::marker::PhantomData;

    use burn::tensor::{Tensor, TensorData};
    use burn_flex::Flex;
    use lowrank_factor::Mat;
    use rstest::rstest;

    use super::*;
    use crate::run::moments::{DeviceMoments, HostMoments};
    use crate::statistics::{InputStatistics, Weighting};

    type OnDevice = DeviceMoments<Flex>;

    /// Rows of a width, which counts how often they are read.
    struct Counted {
        x: Tensor<Flex, 2>,
        reads: Cell<usize>,
    }

    impl Counted {
        fn new(values: &[f32], width: usize) -> Self {
            let data = TensorData::new(values.to_vec(), [values.len() / width, width]);
            Self { x: Tensor::from_data(data, &Default::default()), reads: Cell::new(0) }
        }
    }

    impl Activations for Counted {
        fn shape(&self) -> [usize; 2] {
            self.x.dims()
        }

        fn values(&self) -> Vec<f32> {
            self.reads.set(self.reads.get() + 1);
            self.x.values()
        }

        fn tensor(&self) -> &dyn Any {
            &self.x
        }
    }

    fn give<M: Moments>(sums: &Sums<M>, site: usize, values: &[f32], width: usize) {
        sums.input(site, &Counted::new(values, width));
    }

    fn inputs(weightings: &Weightings, site: &str) -> Arc<InputStatistics> {
        match &weightings[site] {
            Weighting::Inputs(inputs) => inputs.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case::on_host(PhantomData::<HostMoments>)]
    #[case::on_device(PhantomData::<OnDevice>)]
    fn sites_of_one_input_share_its_sums<M: Moments>(#[case] _of: PhantomData<M>) {
        let sums = Sums::<M>::default();
        for batch in 0..2 {
            let x = [1.0, 2.0, 3.0, 4.0 + batch as f32];
            give(&sums, 0, &x, 2);
            give(&sums, 1, &x, 2);
            give(&sums, 2, &[5.0, -6.0], 2);
        }
        let weightings = sums.weightings(|site| site.to_string()).unwrap();
        let of = |site: &str| inputs(&weightings, site);
        assert!(Arc::ptr_eq(&of("0"), &of("1")) && !Arc::ptr_eq(&of("0"), &of("2")));
        let (x, y) = (of("0"), of("2"));
        assert_eq!((x.rows, y.rows), (4, 2));
        assert_eq!(x.gram, Mat::from_fn(2, 2, |i, j| [[20.0, 31.0], [31.0, 49.0]][i][j]));
        assert_eq!(y.gram, Mat::from_fn(2, 2, |i, j| [[50.0, -60.0], [-60.0, 72.0]][i][j]));
        assert_eq!((&x.magnitude[..], &y.magnitude[..]), (&[8.0, 13.0][..], &[10.0, 12.0][..]));
    }

    /// Two experts chosen by the same token share nothing: one had tokens before, and has others later.
    #[rstest]
    #[case::on_host(PhantomData::<HostMoments>)]
    #[case::on_device(PhantomData::<OnDevice>)]
    fn experts_have_sums_of_their_own<M: Moments>(#[case] _of: PhantomData<M>) {
        let sums = Sums::<M>::default();
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
            give(&sums, site, &[x], 1);
        }
        let weightings = sums.weightings(|site| site.to_string()).unwrap();
        let of = |site: &str| inputs(&weightings, site);
        assert!(Arc::ptr_eq(&of("0"), &of("1")));
        assert_eq!((of("0").rows, of("0").gram[(0, 0)]), (3, 14.0));
        assert_eq!((of("2").rows, of("2").gram[(0, 0)]), (1, 4.0));
    }

    #[rstest]
    #[case::on_host(PhantomData::<HostMoments>)]
    #[case::on_device(PhantomData::<OnDevice>)]
    fn sites_of_one_input_in_the_first_batch_alone_part<M: Moments>(#[case] _of: PhantomData<M>) {
        let sums = Sums::<M>::default();
        // A query of first tokens equals the keys' input if every sequence has one token.
        for (query, key) in
            [([1.0, 2.0].to_vec(), [1.0, 2.0].to_vec()), (vec![3.0, 4.0], vec![3.0, 4.0, 5.0, 6.0])]
        {
            give(&sums, 0, &query, 2);
            give(&sums, 1, &key, 2);
        }
        let weightings = sums.weightings(|site| site.to_string()).unwrap();
        let (query, key) = (inputs(&weightings, "0"), inputs(&weightings, "1"));
        assert_eq!((query.rows, key.rows), (2, 3));
        assert_eq!(query.gram, Mat::from_fn(2, 2, |i, j| [[10.0, 14.0], [14.0, 20.0]][i][j]));
        assert_eq!(key.gram, Mat::from_fn(2, 2, |i, j| [[35.0, 44.0], [44.0, 56.0]][i][j]));
        assert_eq!(key.magnitude, [9.0, 12.0]);
    }

    #[rstest]
    #[case::on_host(PhantomData::<HostMoments>)]
    #[case::on_device(PhantomData::<OnDevice>)]
    fn an_input_that_is_not_finite_is_named<M: Moments>(
        #[case] _of: PhantomData<M>,
        #[values(f32::NAN, f32::INFINITY)] bad: f32,
    ) {
        let sums = Sums::<M>::default();
        give(&sums, 3, &[1.0, 2.0], 2);
        give(&sums, 5, &[1.0, bad], 2);
        let error = sums.weightings(|site| site.to_string()).unwrap_err().to_string();
        assert!(error.contains("'5' has non-finite inputs"), "{error}");
    }

    /// More rows than are multiplied at once, in several batches, with an input that is shared at first.
    #[test]
    fn sums_on_the_device_are_those_of_the_host_and_read_no_input() {
        const WIDTH: usize = 19;
        let wave = |rows: usize, seed: f64| -> Vec<f32> {
            let value = |i: usize| ((i * i % 977) as f64 * 0.37 + seed).sin() + 0.25 * ((i % WIDTH) as f64);
            (0..rows * WIDTH).map(|i| value(i) as f32).collect()
        };
        let (host, device) = (Sums::<HostMoments>::default(), Sums::<OnDevice>::default());
        let (mut on_host, mut on_device) = (0, 0);
        for (batch, rows) in [2500, 0, 1024, 1, 1500].into_iter().enumerate() {
            let x = wave(rows, batch as f64);
            let other = if batch < 3 { x.clone() } else { wave(rows, -1.0) };
            for (site, values) in [(0, &x), (1, &x), (2, &other)] {
                let given = [Counted::new(values, WIDTH), Counted::new(values, WIDTH)];
                host.input(site, &given[0]);
                device.input(site, &given[1]);
                on_host += given[0].reads.get();
                on_device += given[1].reads.get();
            }
        }
        assert_eq!((on_host, on_device), (15, 0));
        let [host, device] =
            [host.take(|site| site.to_string()), device.take(|site| site.to_string())].map(Result::unwrap);
        assert!(Arc::ptr_eq(&device[&0], &device[&1]) && !Arc::ptr_eq(&device[&0], &device[&2]));
        for site in 0..3 {
            let (expected, got) = (&host[&site], &device[&site]);
            assert_eq!((got.rows, expected.rows), (5025, 5025));
            for i in 0..WIDTH {
                let off = got.magnitude[i] / expected.magnitude[i] - 1.0;
                assert!(off.abs() < 1e-6, "site {site}, channel {i}: {off}");
                for j in 0..WIDTH {
                    let scale = (expected.gram[(i, i)] * expected.gram[(j, j)]).sqrt();
                    let off = (got.gram[(i, j)] - expected.gram[(i, j)]) / scale;
                    assert!(off.abs() < 1e-6, "site {site}, channels {i} and {j}: {off}");
                }
            }
        }
    }
}
