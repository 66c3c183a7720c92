//! Models, adapters, compressed forms and files beside what transformers, PEFT and llama.cpp gave for small random models
//! (`fixtures/`), and the laws of adapters. One program, since each would instantiate the models for its backends again.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod answers;
mod architectures;
mod beams;
mod calibration;
mod common;
mod decoders;
mod dropout;
mod gguf;
mod gradients;
mod hostile;
mod laws;
mod parity;
mod peft;
mod pictures;
mod representations;
mod seq2seq;
mod storage;
