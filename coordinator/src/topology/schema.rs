//! The JSON Schema of topology files, for editors. What it says of a file is less than what [`super::parse`] knows.

pub(super) const SCHEMA: &str = include_str!("../../topologies/schema.json");

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::super::ready::READY;
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn allows(text: &str) -> bool {
        let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
        jsonschema::meta::validate(&schema).expect("a schema");
        let file: toml::Table = toml::from_str(text).expect("TOML");
        let file = serde_json::to_value(file).expect("JSON");
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        for error in validator.iter_errors(&file) {
            println!("{}: {error}", error.instance_path());
        }
        validator.is_valid(&file)
    }

    #[test]
    fn what_is_possible_is_allowed() {
        let page = include_str!("../../topologies/README.md");
        let lines = page.lines().skip_while(|line| !line.starts_with("    "));
        let example = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
        let example: String = example.flat_map(|line| [line, "\n"]).collect();
        assert!(parse("example", &example).is_ok() && allows(&example));
        for (name, text) in READY {
            assert!(allows(text), "{name}");
        }
        let nothing = "[[node]]\nname = \"a\"\n[[node]]\nname = \"b\"\n\
                       [[link]]\nbetween = [\"a\", \"b\"]\nback = {}\n";
        assert!(parse("x", nothing).is_ok(), "the parser");
        assert!(allows(nothing), "the schema");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let node = "[[node]]\nname = \"a\"\n";
        assert!(allows(node) && parse("x", node).is_ok());
        for wrong in [
            "",
            "[[node]]\n",
            "[[node]]\nname = \"a b\"\n",
            "[[node]]\nname = \"a\"\nmemory = \"1G\"\n",
            "[[node]]\nname = \"a\"\nmem = 1024\n",
            "[[node]]\nname = \"a\"\nmem = \"1T\"\n",
            "[[node]]\nname = \"a\"\ncpus = 65\n",
            "[[node]]\nname = \"a\"\ncpus = \"2\"\n",
            "[[node]]\nname = \"a\"\nsockets = 0\n",
            "[[node]]\nname = \"a\"\nslow = 0.5\n",
            "[[node]]\nname = \"a\"\nhost-cpus = \"0-\"\n",
            "[[node]]\nname = \"a\"\naddress = \"host\"\n",
            "[[node]]\nname = \"a\"\nnuma = [{}]\n",
            "[[node]]\nname = \"a\"\ncaches = [\"1M\", \"1M\", \"1M\", \"1M\"]\n",
            "distances = [[300]]\n[[node]]\nname = \"a\"\n",
            "[[node]]\nname = \"a\"\n[links]\nlatency = \"1 us\"\n",
            "[[node]]\nname = \"a\"\n[links]\nbandwidth = \"10g\"\n",
            "[[node]]\nname = \"a\"\n[links]\nloss = 1\n",
            "[[node]]\nname = \"a\"\n[[link]]\nlatency = \"1us\"\n",
            "[[node]]\nname = \"a\"\n[[link]]\nbetween = [\"a\"]\n",
            "[[node]]\nname = \"a\"\n[[uplink]]\nname = \"u\"\n",
        ] {
            assert!(parse("x", wrong).is_err(), "{wrong}");
            assert!(!allows(wrong), "{wrong}");
        }
    }

    /// What serde expects of a table in which there is something else.
    fn keys(text: &str) -> BTreeSet<String> {
        let error = parse("x", text).expect_err("an unknown key").line;
        let (_, expected) = error.split_once("expected one of ").expect("a list");
        let names = expected.split('`').skip(1).step_by(2);
        names.map(String::from).collect()
    }

    #[test]
    fn each_key_is_in_the_schema_and_no_other() {
        let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
        let said = |table: &Value| -> BTreeSet<String> {
            let properties = table["properties"].as_object().expect("properties");
            properties.keys().cloned().collect()
        };
        let of = |name: &str| said(&schema["$defs"][name]);
        assert_eq!(keys("what = 1"), said(&schema));
        assert_eq!(keys("[[node]]\nwhat = 1"), of("node"));
        assert_eq!(keys("[links]\nwhat = 1"), of("links"));
        assert_eq!(keys("[[link]]\nwhat = 1"), of("link"));
        assert_eq!(keys("[[uplink]]\nwhat = 1"), of("uplink"));
        assert_eq!(keys("[[link]]\nback = { what = 1 }"), of("back"));
        let parts: BTreeSet<String> = ["cpus", "mem"].map(String::from).into();
        assert_eq!(of("numa"), parts);
        let error = parse("x", "[[node]]\nnuma = [{ what = 1 }]").expect_err("unknown");
        assert!(error.line.contains("`cpus` or `mem`"), "{}", error.line);
    }

    /// A default that is written down changes nothing.
    #[test]
    fn defaults_are_those_that_are_taken() {
        let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
        let node = "[[node]]\nname = \"a\"\n";
        let read = |text: &str| format!("{:?}", parse("x", text).expect("a topology"));
        let keys = schema["$defs"]["node"]["properties"].as_object();
        let defaults = keys.expect("properties").iter().filter_map(|(key, said)| {
            let default = said.get("default")?;
            Some((key, default))
        });
        let defaults: Vec<_> = defaults.collect();
        assert!(defaults.iter().any(|(key, _)| *key == "mem"));
        for (key, default) in defaults {
            let text = format!("{node}{key} = {default}\n");
            assert_eq!(read(&text), read(node), "{text}");
        }
    }
}
