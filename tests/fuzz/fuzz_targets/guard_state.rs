#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (defib_fuzz::target("guard_state").expect("it is in the list").run)(data);
});
