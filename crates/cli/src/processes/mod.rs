//! The processes of a data-parallel fine-tuning, started by `mpirun` or `srun`.

#[cfg(feature = "mpi")]
mod mpi;

use std::process::ExitCode;

use anyhow::{Result, ensure};
#[cfg(not(feature = "mpi"))]
use lowrank_train::Alone;
use lowrank_train::Team;

/// This process among those that were started together.
pub(crate) struct Processes {
    #[cfg(feature = "mpi")]
    mpi: Option<mpi::Mpi>,
}

/// Variables in which launchers give the number of processes: Open MPI, MPICH and Intel MPI, MVAPICH, `srun`.
const SIZES: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// The number of processes that the launcher started.
fn launched() -> usize {
    let sizes = SIZES.iter().filter_map(|name| std::env::var(name).ok()?.parse().ok());
    sizes.max().unwrap_or(1)
}

impl Processes {
    /// Joins the other processes, if there are any; all but process 0 fall silent.
    ///
    /// # Errors
    /// Several processes of a command that runs in one, or of a build without MPI.
    pub(crate) fn start(is_parallel: bool) -> Result<Self> {
        let n = launched();
        ensure!(
            n == 1 || is_parallel,
            "the launcher started {n} processes, and only finetune is divided among processes; start this command once"
        );
        #[cfg(not(feature = "mpi"))]
        {
            ensure!(
                n == 1,
                "the launcher started {n} processes, and this build has no MPI; build with --features mpi, or start one process"
            );
            Ok(Self {})
        }
        #[cfg(feature = "mpi")]
        Ok(Self { mpi: (n > 1).then(|| mpi::Mpi::start(n)).transpose()? })
    }

    /// The other processes, as training sees them.
    #[cfg(feature = "mpi")]
    pub(crate) fn team(&self) -> &dyn Team {
        match &self.mpi {
            Some(mpi) => mpi,
            None => &lowrank_train::Alone,
        }
    }

    /// The other processes, as training sees them.
    #[cfg(not(feature = "mpi"))]
    pub(crate) fn team(&self) -> &dyn Team {
        &Alone
    }

    /// Ends the process; an error ends all of them.
    pub(crate) fn end(self, error: Option<&str>) -> ExitCode {
        let Some(error) = error else { return ExitCode::SUCCESS };
        #[cfg(feature = "mpi")]
        if let Some(mpi) = self.mpi {
            mpi.fail(error);
        }
        eprintln!("error: {error}");
        ExitCode::FAILURE
    }
}
