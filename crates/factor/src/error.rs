//! The error type of the crate: one variant for each failure of an input or an iteration.

/// Error of a factorization.
///
/// Every function that takes external data checks it once, before any arithmetic, and returns one of these
/// variants instead of panicking.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FactorError {
    /// A matrix, tensor or list has no elements.
    #[error("{what} is empty ({rows} x {cols})")]
    Empty {
        /// The operand that is empty.
        what: &'static str,
        /// Its number of rows, or of elements for a list.
        rows: usize,
        /// Its number of columns.
        cols: usize,
    },
    /// An element is NaN or infinite.
    #[error("{what} is not finite at row {row}, column {col}")]
    NonFinite {
        /// The operand that holds the element.
        what: &'static str,
        /// Row of the first such element (flat index for a tensor).
        row: usize,
        /// Column of the first such element (0 for a tensor).
        col: usize,
    },
    /// A result does not fit the element type although the input did.
    #[error("{what} overflows the element type")]
    Overflow {
        /// The quantity that overflows.
        what: &'static str,
    },
    /// A rank is zero or exceeds the largest that the shape admits.
    #[error("rank {rank} is out of range 1..={max}")]
    RankOutOfRange {
        /// The requested rank.
        rank: usize,
        /// The largest rank of this shape.
        max: usize,
    },
    /// A relative error is not in `[0, 1)`.
    #[error("relative error {value} is outside [0, 1)")]
    ErrorOutOfRange {
        /// The value given.
        value: f64,
    },
    /// A fraction of energy is not in `(0, 1]`.
    #[error("energy {value} is outside (0, 1]")]
    EnergyOutOfRange {
        /// The value given.
        value: f64,
    },
    /// A parameter or byte budget is below the smallest possible cost.
    #[error("budget {budget} is below the minimum {minimum}")]
    BudgetTooSmall {
        /// The budget given.
        budget: u64,
        /// The cost of the cheapest admissible choice.
        minimum: u64,
    },
    /// The available triplets cannot reach the requested error.
    #[error("relative error {requested:e} cannot be reached, the best is {reached:e}")]
    TargetNotReached {
        /// The requested relative error.
        requested: f64,
        /// The relative error of the best approximation available.
        reached: f64,
    },
    /// Two operands have shapes that do not fit each other.
    #[error("{what}: expected shape {expected:?}, got {got:?}")]
    ShapeMismatch {
        /// The operand at fault.
        what: &'static str,
        /// The shape that would fit.
        expected: Vec<usize>,
        /// The shape that was given.
        got: Vec<usize>,
    },
    /// Neighbouring tensor-train cores disagree on the rank between them.
    #[error("core {index} has left rank {left}, but core {} has right rank {right}", .index - 1)]
    CoreRankMismatch {
        /// Index of the right one of the two cores.
        index: usize,
        /// Its left rank.
        left: usize,
        /// The right rank of the core before it.
        right: usize,
    },
    /// The first left rank or the last right rank of a tensor train is not 1.
    #[error("boundary ranks must be 1, got {first} on the left and {last} on the right")]
    BoundaryRank {
        /// Left rank of the first core.
        first: usize,
        /// Right rank of the last core.
        last: usize,
    },
    /// A weight, importance or eigenvalue that must be at least zero is negative.
    #[error("{what} must not be negative, got {value} at index {index}")]
    Negative {
        /// The operand at fault.
        what: &'static str,
        /// Index of the first such value.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A spectrum is not sorted in nonincreasing order.
    #[error("spectrum must not increase, but entry {index} is larger than the one before it")]
    NotSorted {
        /// Index of the first entry larger than its predecessor.
        index: usize,
    },
    /// A matrix that must be symmetric is not.
    #[error("{what} is not symmetric: entries ({row}, {col}) and ({col}, {row}) differ")]
    NotSymmetric {
        /// The operand at fault.
        what: &'static str,
        /// Row of the worst pair.
        row: usize,
        /// Column of the worst pair.
        col: usize,
    },
    /// An option of an algorithm is outside its range.
    #[error("{option} must be {rule}, got {value}")]
    InvalidOption {
        /// Name of the option.
        option: &'static str,
        /// The rule it breaks.
        rule: &'static str,
        /// The value given.
        value: f64,
    },
    /// A row index lies outside the matrix.
    #[error("index {index} is out of range for {len} rows")]
    IndexOutOfRange {
        /// The index given.
        index: usize,
        /// The number of rows.
        len: usize,
    },
    /// An iteration did not converge.
    #[error("{algorithm} did not converge")]
    NoConvergence {
        /// The algorithm at fault.
        algorithm: &'static str,
    },
    /// A device tensor could not be read back.
    #[error("device tensor cannot be read: {message}")]
    Device {
        /// The backend's message.
        message: String,
    },
}

/// Result with a [`FactorError`].
pub type Result<T, E = FactorError> = core::result::Result<T, E>;
