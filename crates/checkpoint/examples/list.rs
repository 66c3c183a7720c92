//! Lists the tensors of a checkpoint: `cargo run -p lowrank-checkpoint --example list -- PATH`.

#![allow(clippy::print_stdout, reason = "printing is what this does")]

use std::error::Error;

use lowrank_checkpoint::Checkpoint;

fn main() -> Result<(), Box<dyn Error>> {
    let path =
        std::env::args().nth(1).ok_or("usage: list PATH (a tensor file, a shard index or a model folder)")?;
    let checkpoint = Checkpoint::open(path)?;
    for name in checkpoint.names() {
        if let Some(info) = checkpoint.info(name) {
            println!("{:5} {:?} {name}", info.dtype, info.shape);
        }
    }
    println!(
        "{} tensors, {} bytes, hash {}",
        checkpoint.len(),
        checkpoint.byte_size(),
        checkpoint.content_hash()?
    );
    Ok(())
}
