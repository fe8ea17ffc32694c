//! The driver API: what an application links or loads as `libcuda.so.1`.
//!
//! Every exported function goes through [`call::enter`], which keeps panics inside; every handle is looked up in a table,
//! so a foreign pointer is an error code and never a crash. The groups below are layers: each uses its own and those before
//! it (`tests/layers.rs` has the whole order).

// calls and handles
mod call;
mod code;
mod failure;
mod handle;
mod user;
// streams and contexts
mod capture;
mod context;
mod device;
mod stream;
mod timeline;
// what streams order
mod event;
mod memory;
// code
mod function;
mod link;
mod module;
// what runs
mod graph;
mod launch;
mod summary;
// the edge
mod extension;
mod proc;
mod unsupported;

pub(crate) use extension::{Load, Status, TABLE_VERSION, Table};
