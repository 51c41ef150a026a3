//! What to do about all that was found, in the right order.

use crate::report::{Problem, Severity};

/// Commands in the order in which they help: first what others build on, last what deletes.
const ORDER: [&str; 8] = [
    "snapshot key add",
    "snapshot repair index",
    "snapshot repair packs",
    "snapshot create",
    "snapshot repair snapshots",
    "snapshot unlock",
    "snapshot prune",
    "snapshot key remove",
];

/// The commands that the hints of these problems name, each once, in the order in which to run them. Notes ask for
/// nothing.
pub fn what_to_do(problems: &[Problem]) -> Vec<&'static str> {
    let hints = || problems.iter().filter(|p| p.severity != Severity::Note).filter_map(|p| p.hint.as_deref());
    let is_named = |command: &str| hints().any(|hint| hint.contains(&format!("`{command}")));
    let mut steps: Vec<_> = ORDER.into_iter().filter(|command| is_named(command)).collect();
    // It does all that `repair index` does.
    if steps.contains(&"snapshot repair packs") {
        steps.retain(|step| *step != "snapshot repair index");
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(severity: Severity, hint: &str) -> Problem {
        Problem { severity, what: "x".into(), why: "y".into(), hint: Some(hint.into()) }
    }

    #[test]
    fn each_command_once_and_in_order() {
        let problems = [
            problem(Severity::Damage, "run `snapshot create`, then `snapshot repair snapshots --forget`"),
            problem(Severity::Damage, "run `snapshot repair index`"),
            problem(Severity::Damage, "then `snapshot create`"),
            problem(Severity::Note, "run `snapshot prune`"),
        ];
        let all = ["snapshot repair index", "snapshot create", "snapshot repair snapshots"];
        assert_eq!(what_to_do(&problems), all);
        assert_eq!(what_to_do(&problems[3..]), [""; 0]);
        let packs = [&problems[..], &[problem(Severity::Damage, "run `snapshot repair packs`")]].concat();
        assert_eq!(what_to_do(&packs), ["snapshot repair packs", "snapshot create", "snapshot repair snapshots"]);
    }
}
