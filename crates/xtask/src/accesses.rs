//! `cargo xtask count-accesses`: what the loads and stores of kernels take of shared memory's banks and of device memory's sectors, in
//! the tests that run them on the host shim (`kernels/host/accesses.h`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;

use crate::check;

/// What requests of one kind took, at one line of a kernel.
#[derive(Clone, Copy, Default)]
struct Tally {
    requests: u64,
    taken: u64,
    needed: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.taken += other.taken;
        self.needed += other.needed;
    }
}

/// Kernel, "shared" or "device", "read" or "write".
type Kind = (String, String, String);

/// Runs the libraries' tests as the test runner's arguments say, and prints a table of the lines that take more than they need.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<(), String> {
    let path = root.join("target/accesses.txt");
    // What an earlier run has left is not this one's.
    std::fs::write(&path, "").map_err(|e| format!("{}: {e}", path.display()))?;
    let variables = [("SCONCE_HOST_CHECK", "accesses".as_ref()), ("SCONCE_HOST_ACCESSES", path.as_os_str())];
    let tested = check::run_tests(root, args, &variables);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut libraries: Vec<(&str, Vec<_>)> = Vec::new();
    for line in text.lines() {
        if let Some(library) = line.strip_prefix("library ") {
            libraries.push((library, Vec::new()));
        } else if let (Some((_, counted)), Some(own)) = (libraries.last_mut(), parse(line)) {
            counted.push(own);
        } else {
            return Err(format!("a line that is none of the counter's: {line}"));
        }
    }
    if libraries.is_empty() {
        return Err("no test has run a kernel".into());
    }
    println!(
        "Wavefronts of shared memory, sectors of device memory: of all requests, and of lines with more than they need.\n"
    );
    println!("{:>12} {:>12} {:>6}", "taken", "needed", "ratio");
    for (library, counted) in libraries {
        print(&counted, &places(library, &counted)?);
    }
    tested
}

fn parse(line: &str) -> Option<(Kind, String, Tally)> {
    let mut words = line.split(' ').map(str::to_owned);
    let kind = (words.next()?, words.next()?, words.next()?);
    let address = words.next()?;
    let [requests, taken, needed] = [words.next()?, words.next()?, words.next()?].map(|word| word.parse().ok());
    Some((kind, address, Tally { requests: requests?, taken: taken?, needed: needed? }))
}

/// Of each address of the library its lines of the kernels' sources, the innermost first.
fn places(library: &str, counted: &[(Kind, String, Tally)]) -> Result<HashMap<String, String>, String> {
    let list = Path::new(library).with_extension("addresses");
    let addresses: Vec<&str> = counted.iter().map(|(_, address, _)| address.as_str()).collect();
    std::fs::write(&list, addresses.join("\n")).map_err(|e| format!("{}: {e}", list.display()))?;
    let output =
        Command::new("addr2line").args(["-a", "-i", "-e", library]).arg(format!("@{}", list.display())).output();
    let output = output.map_err(|e| format!("addr2line: {e}"))?;
    if !output.status.success() {
        return Err(format!("addr2line: {}", String::from_utf8_lossy(&output.stderr)));
    }
    std::fs::remove_file(&list).map_err(|e| format!("{}: {e}", list.display()))?;
    let mut places: HashMap<String, Vec<String>> = HashMap::new();
    let mut address = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(digits) = line.strip_prefix("0x") {
            address = format!("0x{}", digits.trim_start_matches('0'));
        } else if let Some((_, place)) = line.split_once("/kernels/")
            && !place.contains("host/")
        {
            // What follows a line's number says which of its copies it is.
            let place = place.rsplit('/').next().unwrap_or(place).split(' ').next().unwrap_or(place);
            places.entry(address.clone()).or_default().push(place.to_owned());
        }
    }
    Ok(places.into_iter().map(|(address, lines)| (address, lines.join(" < "))).collect())
}

fn print(counted: &[(Kind, String, Tally)], places: &HashMap<String, String>) {
    let mut kinds: BTreeMap<&Kind, Tally> = BTreeMap::new();
    let mut at_lines: BTreeMap<(&Kind, &str), Tally> = BTreeMap::new();
    for (kind, address, tally) in counted {
        let place = places.get(address).map_or("?", String::as_str);
        kinds.entry(kind).or_default().add(*tally);
        at_lines.entry((kind, place)).or_default().add(*tally);
    }
    for (kind, all) in kinds {
        let ratio = |tally: &Tally| tally.taken as f64 / tally.needed.max(1) as f64;
        println!("{:>12} {:>12} {:>6.2} {} {} {}", all.taken, all.needed, ratio(&all), kind.0, kind.1, kind.2);
        let own = at_lines.iter().filter(|((of, _), tally)| *of == kind && tally.taken > tally.needed);
        let mut own: Vec<_> = own.collect();
        own.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.taken - tally.needed));
        for ((_, place), tally) in own {
            println!(
                "{:>12} {:>12} {:>6.2}     {} requests, {place}",
                tally.taken,
                tally.needed,
                ratio(tally),
                tally.requests
            );
        }
    }
}
