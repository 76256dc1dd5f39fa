use super::*;

#[test]
fn the_number_grows_with_the_memory_up_to_its_end() {
    let table = [
        (0, 0),
        (128, 32_768),
        (512, 131_072),
        (1 << 10, 163_840),
        (4 << 10, 360_448),
        (1 << 20, MAX_FILES),
        (u64::MAX, MAX_FILES),
    ];
    for (memory_mib, files) in table {
        assert_eq!(max_files(memory_mib), files, "{memory_mib} MiB");
    }
}
