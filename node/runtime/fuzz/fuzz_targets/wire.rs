//! What peers send, from the bytes to what the runtime does with them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    node::fuzz::stream(bytes);
});
