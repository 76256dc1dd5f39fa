use super::*;

#[test]
fn a_program_that_the_verifier_refuses_is_an_error_with_its_reason() {
    // The verdict is missing.
    let error = load(&[exit()]).unwrap_err();
    assert!(error.to_string().contains("R0 !read_ok"), "these tests need root: {error}");
}

#[test]
fn every_jump_of_the_program_ends_within_it() {
    let choose = [load_u32(R2, R6, FAMILY), jump_unless_equal(R2, 2, TO_END), set(R7, 0)];
    let program = program(&choose, 3);
    let places = 0..program.len();
    for (index, instruction) in program.iter().enumerate() {
        // The class of jumps, without calls and the exit.
        if instruction.code & 7 == 5 && ![0x85, 0x95].contains(&instruction.code) {
            let target = index + 1 + usize::try_from(instruction.offset).unwrap();
            assert!(places.contains(&target), "{index}: {instruction:?}");
        }
    }
}
