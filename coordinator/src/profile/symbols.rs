//! Names of the kernel's functions and variables, from the symbol table of its file.

use addr2line::Context;
use gimli::{Dwarf, EndianReader, RunTimeEndian, SectionId};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use std::path::Path;
use std::rc::Rc;

const PAGE_BYTES: u64 = 4096;

/// Most symbols of one page that are named.
const PAGE_SYMBOLS_MAX: usize = 64;

/// The C library, which the kernel calls with addresses of guest memory.
const HOST_CODE: &str = "host code";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Symbol {
    start: u64,
    bytes: u64,
    pub(super) name: String,
}

type Reader = EndianReader<RunTimeEndian, Rc<[u8]>>;

/// In order of their addresses; empty where nothing is known.
#[derive(Default)]
pub(super) struct Symbols {
    functions: Vec<Symbol>,
    variables: Vec<Symbol>,
    /// Of the data that lies in the file or is cleared at the start.
    data: std::ops::Range<u64>,
    /// The model of what each CPU has a copy of, and how far away the copies are.
    per_cpu: std::ops::Range<u64>,
    copies: Vec<(u16, u64)>,
    /// Of a program that was built with them.
    lines: Option<Context<Reader>>,
}

impl Symbols {
    /// Reads the symbol table of a kernel; `copies` says how far from their model the variables of each
    /// CPU are.
    pub(super) fn read(path: &Path, copies: Vec<(u16, u64)>) -> Result<Self, String> {
        let contents = std::fs::read(path).map_err(|error| error.to_string())?;
        let file = object::File::parse(&*contents).map_err(|error| error.to_string())?;
        let mut symbols = Self {
            copies,
            ..Self::default()
        };
        for symbol in file.symbols() {
            match symbol.name() {
                Ok("__per_cpu_start") => symbols.per_cpu.start = symbol.address(),
                Ok("__per_cpu_end") => symbols.per_cpu.end = symbol.address(),
                _ => {}
            }
            let into = match symbol.kind() {
                SymbolKind::Text => &mut symbols.functions,
                SymbolKind::Data => &mut symbols.variables,
                _ => continue,
            };
            let name = symbol.name().unwrap_or_default();
            if symbol.size() > 0 && symbol.address() > 0 && !name.is_empty() {
                into.push(Symbol {
                    start: symbol.address(),
                    bytes: symbol.size(),
                    name: name.to_string(),
                });
            }
        }
        if symbols.functions.is_empty() {
            return Err("it has no symbols".into());
        }
        for list in [&mut symbols.functions, &mut symbols.variables] {
            list.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
            list.dedup_by_key(|symbol| symbol.start);
        }
        let data = file.sections().filter(|section| {
            let kind = section.kind();
            kind.is_bss() || kind == object::SectionKind::Data
        });
        let ranges: Vec<_> = data
            .map(|section| section.address()..section.address() + section.size())
            .collect();
        symbols.data = ranges.iter().map(|range| range.start).min().unwrap_or(0)
            ..ranges.iter().map(|range| range.end).max().unwrap_or(0);
        symbols.lines = lines(&file);
        Ok(symbols)
    }

    /// File and line of an instruction.
    pub(super) fn line(&self, address: u64) -> Option<String> {
        // Functions that were left out of a program still have lines, at addresses of nothing.
        self.function(address)?;
        let location = self.lines.as_ref()?.find_location(address).ok()??;
        // The kernel's are as in its tree.
        let file = location.file?;
        let file = file.strip_prefix("./").unwrap_or(file);
        Some(format!("{file}:{}", location.line?))
    }

    /// Name of the function at an address.
    pub(super) fn function(&self, address: u64) -> Option<&str> {
        at(&self.functions, address).map(|symbol| symbol.name.as_str())
    }

    /// What people call the function at an address: [`HOST_CODE`] if it is none of the kernel's.
    pub(super) fn function_name(&self, address: u64) -> String {
        match self.function(address) {
            Some(name) => name.into(),
            None if self.is_host_code(address) => HOST_CODE.into(),
            None => format!("{address:#x}"),
        }
    }

    /// The instruction at an address as people write it: function and offset.
    pub(super) fn instruction(&self, address: u64) -> String {
        match at(&self.functions, address) {
            Some(symbol) => format!("{}+{:#x}", symbol.name, address - symbol.start),
            None if self.is_host_code(address) => format!("{HOST_CODE} {address:#x}"),
            None => format!("{address:#x}"),
        }
    }

    fn is_host_code(&self, address: u64) -> bool {
        match (self.functions.first(), self.functions.last()) {
            (Some(first), Some(last)) => !(first.start..last.start + last.bytes).contains(&address),
            _ => false,
        }
    }

    /// Name of the variable at an address.
    pub(super) fn variable(&self, address: u64) -> Option<String> {
        let (model, cpu) = self.model(address);
        let name = &at(&self.variables, model)?.name;
        Some(of_cpu(name, cpu))
    }

    /// Whether an address is one of static data, with a name or without.
    pub(super) fn is_static(&self, address: u64) -> bool {
        self.data.contains(&self.model(address).0)
    }

    /// Where the model of a per-CPU variable is, and which CPU's it is; other addresses are their own.
    fn model(&self, address: u64) -> (u64, Option<u16>) {
        let copies = self.copies.iter();
        copies
            .map(|(cpu, offset)| (address.wrapping_sub(*offset), Some(*cpu)))
            .find(|(model, _)| self.per_cpu.contains(model))
            .unwrap_or((address, None))
    }

    /// Names of the variables that lie in the page of an address, at least in part.
    pub(super) fn on_page(&self, address: u64) -> Vec<String> {
        let (address, cpu) = self.model(address);
        let page = address / PAGE_BYTES * PAGE_BYTES;
        let end = self
            .variables
            .partition_point(|symbol| symbol.start < page + PAGE_BYTES);
        let mut names: Vec<String> = self.variables[..end]
            .iter()
            .rev()
            // Of those that begin before it, one reaches into it.
            .take_while(|symbol| symbol.start + symbol.bytes > page)
            .take(PAGE_SYMBOLS_MAX)
            .map(|symbol| of_cpu(&symbol.name, cpu))
            .collect();
        names.reverse();
        names
    }
}

fn of_cpu(name: &str, cpu: Option<u16>) -> String {
    match cpu {
        Some(cpu) => format!("{name} of CPU {cpu}"),
        None => name.into(),
    }
}

fn lines(file: &object::File<'_>) -> Option<Context<Reader>> {
    file.section_by_name(".debug_line")?;
    let endian = match file.is_little_endian() {
        true => RunTimeEndian::Little,
        false => RunTimeEndian::Big,
    };
    let section = |id: SectionId| {
        let section = file.section_by_name(id.name());
        let data = section.and_then(|section| section.uncompressed_data().ok());
        let data = Rc::from(data.unwrap_or_default());
        Ok::<_, gimli::Error>(EndianReader::new(data, endian))
    };
    Context::from_dwarf(Dwarf::load(section).ok()?).ok()
}

fn at(symbols: &[Symbol], address: u64) -> Option<&Symbol> {
    let after = symbols.partition_point(|symbol| symbol.start <= address);
    let symbol = symbols.get(after.checked_sub(1)?)?;
    (address - symbol.start < symbol.bytes).then_some(symbol)
}

#[cfg(test)]
impl Symbols {
    /// Functions and variables: name, start and size.
    pub(super) fn known(functions: &[(&str, u64, u64)], variables: &[(&str, u64, u64)]) -> Self {
        let list = |symbols: &[(&str, u64, u64)]| {
            let symbol = |&(name, start, bytes): &(&str, u64, u64)| Symbol {
                start,
                bytes,
                name: name.into(),
            };
            symbols.iter().map(symbol).collect::<Vec<_>>()
        };
        let (functions, variables) = (list(functions), list(variables));
        let data = match (variables.first(), variables.last()) {
            (Some(first), Some(last)) => first.start..last.start + last.bytes,
            _ => 0..0,
        };
        Self {
            functions,
            variables,
            data,
            per_cpu: 0..0,
            copies: Vec::new(),
            lines: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Symbols {
        Symbols::known(
            &[("start", 0x1000, 0x10), ("end", 0x1020, 0x10)],
            &[
                ("long", 0x5f00, 0x1200),
                ("short", 0x7100, 8),
                ("other", 0x7200, 8),
                ("next", 0x8000, 8),
            ],
        )
    }

    #[test]
    fn an_address_belongs_to_the_symbol_around_it() {
        let symbols = some();
        assert_eq!(symbols.instruction(0x1000), "start+0x0");
        assert_eq!(symbols.instruction(0x102f), "end+0xf");
        // Between them.
        assert_eq!(symbols.instruction(0x1010), "0x1010");
        assert_eq!(symbols.function_name(0x1010), "0x1010");
        // Before and behind them is no code of the kernel's.
        for address in [0, 0xfff, 0x1030, u64::MAX] {
            assert_eq!(
                symbols.instruction(address),
                format!("host code {address:#x}")
            );
            assert_eq!(symbols.function_name(address), "host code");
            assert_eq!(symbols.function(address), None);
        }
        assert_eq!(Symbols::default().function_name(0x1000), "0x1000");
        assert_eq!(symbols.variable(0x70ff).as_deref(), Some("long"));
        assert_eq!(symbols.variable(0x7108), None);
        assert!(symbols.is_static(0x7108) && !symbols.is_static(0x9000));
    }

    #[test]
    fn a_page_has_the_variables_that_reach_into_it() {
        let symbols = some();
        assert_eq!(symbols.on_page(0x5000), ["long"]);
        assert_eq!(symbols.on_page(0x6fff), ["long"]);
        assert_eq!(symbols.on_page(0x7ff0), ["long", "short", "other"]);
        assert_eq!(symbols.on_page(0x8000), ["next"]);
        assert!(symbols.on_page(0x9000).is_empty() && symbols.on_page(0).is_empty());
        assert!(Symbols::default().on_page(0x7000).is_empty());
    }

    #[test]
    fn a_variable_of_a_cpu_has_its_model_s_name() {
        let mut symbols = some();
        symbols.per_cpu = 0x7000..0x8000;
        symbols.copies = vec![(0, 0x10_0000), (3, 0x20_0000)];
        let name = |address| symbols.variable(address);
        assert_eq!(name(0x7100).as_deref(), Some("short"));
        assert_eq!(name(0x10_7100).as_deref(), Some("short of CPU 0"));
        assert_eq!(name(0x20_7207).as_deref(), Some("other of CPU 3"));
        assert_eq!(name(0x20_8000), None);
        assert_eq!(name(0x30_7100), None);
        assert_eq!(
            symbols.on_page(0x20_7000),
            ["long of CPU 3", "short of CPU 3", "other of CPU 3"]
        );
        assert!(symbols.is_static(0x20_7100) && !symbols.is_static(0x20_8000));
    }

    /// A function that is in the symbol table and begins with a line of its own, however this program is optimized.
    #[inline(never)]
    fn a_function_with_lines(value: u64) -> u64 {
        value ^ 0x55
    }

    #[test]
    fn a_program_is_read() {
        std::hint::black_box(a_function_with_lines(std::hint::black_box(1)));
        let symbols = Symbols::read(&std::env::current_exe().unwrap(), Vec::new()).unwrap();
        let (main, bytes) = {
            let main = symbols
                .functions
                .iter()
                .find(|symbol| symbol.name == "main");
            main.map(|symbol| (symbol.start, symbol.bytes)).unwrap()
        };
        assert_eq!(symbols.function(main + bytes - 1), Some("main"));
        assert!(!symbols.variables.is_empty());
        let own = symbols.functions.iter();
        let own = own.filter(|symbol| symbol.name.contains("a_function_with_lines"));
        let lines: Vec<_> = own
            .filter_map(|symbol| symbols.line(symbol.start))
            .collect();
        let here = |line: &String| line.contains(concat!(file!(), ":"));
        assert!(lines.iter().any(here), "{lines:?}");
        assert_eq!(symbols.line(1), None);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        assert!(Symbols::read(&path, Vec::new()).is_err());
        std::fs::write(&path, "no program").unwrap();
        assert!(Symbols::read(&path, Vec::new()).is_err());
    }
}
