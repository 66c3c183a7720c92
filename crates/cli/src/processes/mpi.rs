//! [`Team`] over MPI.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ::mpi::collective::SystemOperation;
use ::mpi::datatype::Equivalence;
use ::mpi::environment::Universe;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Root};
use anyhow::{Context, Result, ensure};
use lowrank_train::{Shard, Team};

/// This process in MPI's world. MPI ends when it is dropped.
pub(super) struct Mpi {
    universe: Universe,
    shard: Shard,
    /// The standard error of a process whose output is discarded.
    stderr: Option<OwnedFd>,
}

/// Numbers in a message: MPI counts in 32 bits, and a copy of them is held.
const MESSAGE: usize = 1 << 24;

/// Time in which process 0 reports an error that all processes have.
const GRACE: Duration = Duration::from_secs(1);

impl Mpi {
    /// Joins the `n` processes of the launcher.
    pub(super) fn start(n: usize) -> Result<Self> {
        let universe = ::mpi::initialize().context("MPI cannot be initialized")?;
        let world = universe.world();
        let (rank, size) = (world.rank(), world.size());
        ensure!(
            size as usize == n,
            "the launcher started {n} processes, and MPI counts {size}; use the launcher of the MPI that lowrank was built with"
        );
        let shard = Shard::new(rank as usize, n)?;
        let stderr = (rank > 0).then(silence).transpose().context("cannot discard the output")?;
        Ok(Self { universe, shard, stderr })
    }

    /// Reports an error and ends all processes.
    pub(super) fn fail(self, error: &str) -> ! {
        match self.stderr {
            None => eprintln!("error: {error}"),
            Some(stderr) => {
                std::thread::sleep(GRACE);
                // Nothing is left to be done if even this fails.
                let _ = writeln!(File::from(stderr), "error: process {}: {error}", self.shard.index());
            }
        }
        self.universe.world().abort(1)
    }

    fn sum_all<T: Equivalence + Clone>(&self, values: &mut [T]) {
        let world = self.universe.world();
        for part in values.chunks_mut(MESSAGE) {
            world.all_reduce_into(&part.to_vec()[..], part, SystemOperation::sum());
        }
    }
}

/// Discards standard output and error; the latter is returned.
fn silence() -> std::io::Result<OwnedFd> {
    let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(stderr)
}

/// MPI ends the job itself if a process cannot be reached.
impl Team for Mpi {
    fn shard(&self) -> Shard {
        self.shard
    }

    fn sum(&self, values: &mut [f32]) -> lowrank_train::Result<()> {
        self.sum_all(values);
        Ok(())
    }

    fn sum_f64(&self, values: &mut [f64]) -> lowrank_train::Result<()> {
        self.sum_all(values);
        Ok(())
    }

    fn broadcast(&self, values: &mut [f64]) -> lowrank_train::Result<()> {
        self.universe.world().process_at_rank(0).broadcast_into(values);
        Ok(())
    }
}
