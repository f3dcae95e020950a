//! The store on a real database and folder, with adapters that peft wrote.

mod golden;
mod uploads;
