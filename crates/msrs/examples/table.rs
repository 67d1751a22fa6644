//! Prints the table as the book has it: `cargo run -p umbra-msrs --example table`.

fn main() {
    print!("{}", umbra_msrs::Markdown);
}
