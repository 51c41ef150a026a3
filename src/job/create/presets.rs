//! Which known applications the sources are, and what is therefore left out.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::sources::Top;
use crate::report::{Reporter, Severity};
use crate::source::preset::{Application, Omission, PRESETS, Preset, recognise};

/// Which presets are used.
#[derive(Debug, Clone, Copy, Default)]
pub enum PresetChoice {
    /// Those whose directories are recognised; only what the application makes anew by itself is left out.
    #[default]
    Recognised,
    /// None.
    None,
    /// This one, with all that it leaves out.
    Named(&'static Preset),
}

/// What was chosen.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    names: BTreeSet<&'static str>,
    /// Patterns of each source.
    patterns: HashMap<PathBuf, Vec<String>>,
}

impl Chosen {
    /// Looks at all sources, and says what is used and what is left out.
    pub fn new(top: &Top, choice: PresetChoice, reporter: &Reporter) -> Self {
        let mut chosen = Self::default();
        for source in top.sources().into_iter().filter(|source| source.is_dir()) {
            let found = match choice {
                PresetChoice::None => continue,
                PresetChoice::Recognised => recognise(source, &PRESETS),
                PresetChoice::Named(preset) => named(source, preset, reporter),
            };
            let asked = matches!(choice, PresetChoice::Named(_));
            for application in found {
                tell(source, &application, asked, reporter);
                chosen.names.insert(application.preset.name);
                let patterns = application.omissions(asked).map(|omission| application.pattern(omission));
                chosen.patterns.entry(source.to_path_buf()).or_default().extend(patterns);
            }
        }
        chosen
    }

    /// What is left out of a source.
    pub fn patterns(&self, source: &Path) -> &[String] {
        self.patterns.get(source).map_or(&[], Vec::as_slice)
    }

    /// What the snapshot says.
    pub fn recorded(&self) -> Option<String> {
        (!self.names.is_empty()).then(|| self.names.iter().copied().collect::<Vec<_>>().join(","))
    }
}

/// Where an application lies that the user has named: the source itself, if it can't be recognised.
fn named(source: &Path, preset: &'static Preset, reporter: &Reporter) -> Vec<Application> {
    let mut found = recognise(source, &PRESETS);
    found.retain(|application| application.preset.name == preset.name);
    if found.is_empty() {
        let why = format!("not recognised as the directory of {}: there is no {}", preset.title, needs(preset));
        reporter.warn(Severity::Warning, source.display(), format!("{why}; taken for one nevertheless"));
        found.push(Application { preset, below: PathBuf::new() });
    }
    found
}

fn needs(preset: &Preset) -> String {
    match preset.beside {
        [] => preset.database.to_owned(),
        beside => format!("{} with {} beside it", preset.database, beside.join(" or ")),
    }
}

fn tell(source: &Path, application: &Application, asked: bool, reporter: &Reporter) {
    let preset = application.preset;
    let directory =
        if application.below.as_os_str().is_empty() { source.to_path_buf() } else { source.join(&application.below) };
    let list = |omissions: Vec<&Omission>| {
        let each = omissions.iter().map(|o| format!("{} ({})", o.pattern.trim_start_matches('/'), o.what));
        each.collect::<Vec<_>>().join(", ")
    };
    let left_out = list(application.omissions(asked).collect());
    let mut why = match (asked, left_out.is_empty()) {
        (true, true) => format!("taken as {}", preset.title),
        (true, false) => format!("taken as {}; left out: {left_out}", preset.title),
        (false, true) => format!("recognised as {} (preset {})", preset.title, preset.name),
        (false, false) => format!(
            "recognised as {} (preset {}); left out, since it makes them anew: {left_out}; `--preset none` keeps them",
            preset.title, preset.name
        ),
    };
    let is_there = |o: &&Omission| directory.join(o.pattern.trim_matches('/')).exists();
    let kept: Vec<_> = preset.on_request.iter().filter(|_| !asked).filter(is_there).collect();
    if !kept.is_empty() {
        why += &format!("; kept, but left out with `--preset {}`: {}", preset.name, list(kept));
    }
    reporter.warn(Severity::Note, directory.display(), why);
}
