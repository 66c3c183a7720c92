//! Assignment of adapters to the sequences of a batch.

/// A member, or none, for each sequence of a packed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    rows: Vec<Option<usize>>,
    lengths: Vec<usize>,
}

/// Some rows of a step: those routed to an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PickedRows<'a> {
    /// Indices of the rows, in their given order.
    pub rows: &'a [i32],
    /// Total number of rows.
    pub of: usize,
}

/// The rows of a step that use one member, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) member: Option<usize>,
    pub(crate) rows: Vec<i32>,
}

impl Route {
    pub(crate) fn new(rows: Vec<Option<usize>>, lengths: &[usize]) -> Self {
        Self { rows, lengths: lengths.to_vec() }
    }

    /// The route of a step over some of the sequences: `lengths[i]` tokens of sequence `active[i]`. A
    /// sequence outside the batch uses no member.
    pub(crate) fn of_step(&self, active: &[usize], lengths: &[usize]) -> Self {
        Self::new(active.iter().map(|&s| self.rows.get(s).copied().flatten()).collect(), lengths)
    }

    /// Groups the rows of a step by the member they use. A step sees every token of the batch, or one row of each
    /// sequence.
    ///
    /// # Panics
    /// If the number of rows differs: the set was then routed for another batch.
    #[track_caller]
    pub(crate) fn groups_of(&self, n_rows: usize, picked: Option<PickedRows<'_>>) -> Vec<Group> {
        let Some(PickedRows { rows, of }) = picked else { return self.groups(n_rows) };
        let mut members = vec![None; of];
        for group in self.groups(of) {
            group.rows.iter().for_each(|&row| members[row as usize] = group.member);
        }
        let mut groups: Vec<Group> = Vec::new();
        for (place, &row) in (0..).zip(rows) {
            let member = members[row as usize];
            match groups.iter_mut().find(|g| g.member == member) {
                Some(group) => group.rows.push(place),
                None => groups.push(Group { member, rows: vec![place] }),
            }
        }
        groups
    }

    /// Like [`groups_of`](Self::groups_of), for all rows of a step.
    #[track_caller]
    pub(crate) fn groups(&self, n_rows: usize) -> Vec<Group> {
        let tokens: usize = self.lengths.iter().sum();
        let by_token = n_rows == tokens;
        assert!(
            by_token || n_rows == self.rows.len(),
            "adapters are routed for {} sequences of {tokens} tokens, not for {n_rows} rows",
            self.rows.len()
        );
        let mut groups: Vec<Group> = Vec::new();
        let mut next = 0;
        for (&member, &length) in self.rows.iter().zip(&self.lengths) {
            let n = if by_token { length as i32 } else { 1 };
            match groups.iter_mut().find(|g| g.member == member) {
                Some(group) => group.rows.extend(next..next + n),
                None => groups.push(Group { member, rows: (next..next + n).collect() }),
            }
            next += n;
        }
        groups
    }
}

/// For the concatenated rows of groups: the position of each row of the step.
pub(crate) fn order(groups: &[Group]) -> Vec<i32> {
    let laid = groups.iter().flat_map(|g| &g.rows);
    let mut order = vec![0; groups.iter().map(|g| g.rows.len()).sum()];
    for (place, &row) in laid.enumerate() {
        order[row as usize] = place as i32;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_grouped_by_token_and_by_sequence() {
        let route = Route::new(vec![Some(1), None, Some(1)], &[2, 1, 3]);
        let tokens = route.groups(6);
        assert_eq!(tokens[0], Group { member: Some(1), rows: vec![0, 1, 3, 4, 5] });
        assert_eq!(tokens[1], Group { member: None, rows: vec![2] });
        assert_eq!(order(&tokens), [0, 1, 5, 2, 3, 4]);
        assert_eq!(route.groups(3)[0].rows, [0, 2]);
    }

    #[test]
    fn picked_rows_keep_their_members() {
        let route = Route::new(vec![Some(1), None, Some(1)], &[2, 1, 3]);
        let picked = PickedRows { rows: &[5, 2, 0], of: 6 };
        let groups = route.groups_of(3, Some(picked));
        assert_eq!(groups[0], Group { member: Some(1), rows: vec![0, 2] });
        assert_eq!(groups[1], Group { member: None, rows: vec![1] });
        let last = route.groups_of(1, Some(PickedRows { rows: &[1], of: 3 }));
        assert_eq!(last, [Group { member: None, rows: vec![0] }]);
    }

    #[test]
    #[should_panic(expected = "not for 4 rows")]
    fn another_batch_is_refused() {
        Route::new(vec![Some(0), None], &[2, 1]).groups(4);
    }
}
