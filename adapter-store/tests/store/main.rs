//! The store on a real database and folder, with adapters that peft wrote and adapters that the tests build.

mod bases;
mod build;
mod golden;
mod refusals;
mod removal;
mod uploads;
