//! How long the long tests are: a variable of the environment for each, see `README.md`.

/// The value of a variable, else that of the short form.
#[track_caller]
pub fn number(variable: &str, short: u64) -> u64 {
    std::env::var(variable).map_or(short, |text| {
        let parsed = text.parse();
        parsed.unwrap_or_else(|_| panic!("{variable} is a whole number, not {text:?}"))
    })
}
