//! The machine and this process, for run records.

use std::path::Path;

use lowrank_report::run::Hardware;

fn line_value(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new(file)).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn kilobytes(file: &str, key: &str) -> Option<f64> {
    line_value(file, key)?.split_whitespace().next()?.parse().ok()
}

/// Peak resident memory of this process in MB (10⁶ bytes), if the system reports it.
pub(crate) fn peak_rss_mb() -> Option<f64> {
    kilobytes("/proc/self/status", "VmHWM").map(|kb| kb * 1024.0 / 1e6)
}

/// Processor, cores and memory.
pub(crate) fn hardware() -> Hardware {
    Hardware {
        cpu: line_value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        memory_mb: kilobytes("/proc/meminfo", "MemTotal").map_or(0, |kb| (kb * 1024.0 / 1e6) as u64),
    }
}
