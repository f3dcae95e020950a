//! The built-in model is carried in the binary: a change of its files is a change of the binary.

fn main() {
    println!("cargo::rerun-if-changed=models/myriad-mini");
}
