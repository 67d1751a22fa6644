//! Inputs that fuzzers once found, and that must be judged well by now.

use umbra_fuzz::instruction;

#[test]
fn a_vector_instruction_that_a_prefix_makes_too_long() {
    instruction(b"\x08+&&&&&&&&&&&&&\xc5O");
}

/// iced-x86's tables have the address of the operand after RSP has moved.
#[test]
fn a_pop_to_where_the_stack_pointer_leads() {
    instruction(b"0\xaf\xce\x8f\x04leH\xc7\x8f\x0ble\0\x0f\0\xcf\x01");
}
