#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (defib_fuzz::target("event_stream").expect("it is in the list").run)(data);
});
