//! Inputs that fuzzers once found, and that must be judged well by now.

use umbra_fuzz::instruction;

#[test]
fn a_vector_instruction_that_a_prefix_makes_too_long() {
    instruction(b"\x08+&&&&&&&&&&&&&\xc5O");
}
