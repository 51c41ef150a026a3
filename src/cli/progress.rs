//! What goes to standard error: progress, problems, notices, the error that ended the command. As text with a bar on
//! a terminal, as text alone, or as one JSON object a line.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use snapshot::error::Error;
use snapshot::report::{Problem, Progress, Severity, Sink};

use super::args::Global;
use super::output::{clean, count, number};

/// Most draws a second on a terminal.
const DRAWS_HZ: u8 = 10;
/// Milliseconds between two draws, and before the first: short commands show no bar.
const BAR_MILLIS: u64 = 125;
/// Milliseconds between two turns of the spinner where one large thing takes long and nothing else is drawn.
const TICK_MILLIS: u64 = 1000;
/// Milliseconds between two JSON lines.
const LINE_MILLIS: u64 = 500;

const UNKNOWN: &str = "{spinner} {elapsed_precise}  {binary_bytes}  {binary_bytes_per_sec}  {wide_msg}";
const KNOWN: &str = "{bar:24} {percent:>3} %  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {wide_msg}";

/// Standard error.
pub struct Display {
    json: bool,
    quiet: bool,
    verbose: bool,
    bar: Option<ProgressBar>,
    lines: bool,
    started: Instant,
    /// When progress was shown last, in milliseconds after the start; 0 before the first time.
    shown: AtomicU64,
    /// Whether the bar turns by itself.
    ticking: AtomicBool,
}

impl Display {
    /// Chooses what to show: a bar only on a terminal.
    pub fn new(global: &Global) -> Arc<Self> {
        let progress = !global.quiet && !global.no_progress;
        let bar = (progress && !global.json && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_HZ));
            bar.set_style(style(UNKNOWN));
            bar
        });
        Arc::new(Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose > 0,
            bar,
            lines: progress && global.json,
            started: Instant::now(),
            shown: AtomicU64::new(0),
            ticking: AtomicBool::new(false),
        })
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Whether notices may be given as text to a person who reads them now.
    pub fn is_personal(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Takes the bar away, before results are printed.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Something to know that is no problem.
    pub fn notice(&self, text: &str) {
        if self.json {
            self.write(&json!({"type": "note", "message": text}).to_string());
        } else {
            self.write(&clean(text));
        }
    }

    /// Something that happened: its text for people, or all of it for programs.
    pub fn event(&self, text: &str, event: &Value) {
        if self.json {
            self.write(&event.to_string());
        } else {
            self.remark(text);
        }
    }

    /// The same, unless quiet.
    pub fn remark(&self, text: &str) {
        if !self.quiet {
            self.notice(text);
        }
    }

    /// The same, only with --verbose.
    pub fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            self.notice(&text());
        }
    }

    /// The error that ended the command.
    pub fn error(&self, error: &Error) {
        self.finish();
        if self.json {
            self.write(&error_line(error.code(), &error.to_string(), error.hint()));
            return;
        }
        self.write(&format!("error: {}", clean(&error.to_string())));
        if let Some(hint) = error.hint() {
            self.write(&format!("hint: {}", clean(hint)));
        }
    }

    /// Writes a line. Where standard error is gone, nothing can be told to anyone.
    fn write(&self, line: &str) {
        let print = || {
            let _ = writeln!(io::stderr(), "{line}");
        };
        match &self.bar {
            // Suspending a bar draws it afterwards: only one that is there already.
            Some(bar) if self.shown.load(Ordering::Relaxed) > 0 && !bar.is_finished() => bar.suspend(print),
            _ => print(),
        }
    }

    /// Whether it is time to show progress again; claims the turn.
    fn is_due(&self, every: u64) -> bool {
        let now = self.started.elapsed().as_millis() as u64;
        let last = self.shown.load(Ordering::Relaxed);
        now >= last + every && self.shown.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn problem(&self, problem: &Problem) {
        if self.json {
            self.write(&problem_json(problem).to_string());
            return;
        }
        if problem.severity == Severity::Note && self.quiet {
            return;
        }
        let word = if problem.severity == Severity::Note { "note" } else { "warning" };
        self.write(&format!("{word}: {}: {}", clean(&problem.what), clean(&problem.why)));
        if let Some(hint) = &problem.hint {
            self.write(&format!("  hint: {}", clean(hint)));
        }
    }

    fn draw(&self, bar: &ProgressBar, progress: &Progress) {
        let (bytes, total) = (load(&progress.bytes), load(&progress.bytes_total));
        if total > 0 && bar.length() != Some(total) {
            if bar.length().is_none() {
                bar.set_style(style(KNOWN));
            }
            bar.set_length(total);
        }
        if !self.ticking.swap(true, Ordering::Relaxed) {
            bar.enable_steady_tick(Duration::from_millis(TICK_MILLIS));
        }
        bar.set_position(bytes);
        bar.set_message(message(progress));
    }

    fn line(&self, progress: &Progress) {
        let line = json!({
            "type": "progress",
            "bytes": load(&progress.bytes),
            "bytes_total": load(&progress.bytes_total),
            "files": load(&progress.files),
            "files_total": load(&progress.files_total),
            "seconds": self.seconds(),
            "current": current(progress),
        });
        self.write(&line.to_string());
    }
}

/// Gives a [`Display`] to a reporter.
pub struct Shown(pub Arc<Display>);

impl Sink for Shown {
    fn problem(&self, problem: &Problem) {
        self.0.problem(problem);
    }

    fn progress(&self, progress: &Progress) {
        match &self.0.bar {
            Some(bar) if !bar.is_finished() && self.0.is_due(BAR_MILLIS) => self.0.draw(bar, progress),
            None if self.0.lines && self.0.is_due(LINE_MILLIS) => self.0.line(progress),
            _ => {}
        }
    }
}

/// The line for an error, for programs.
pub fn error_line(code: &str, message: &str, hint: Option<&str>) -> String {
    json!({"type": "error", "code": code, "message": message, "hint": hint}).to_string()
}

/// A problem, for programs.
pub fn problem_json(problem: &Problem) -> Value {
    let severity = match problem.severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Source => "source",
        Severity::Damage => "damage",
        Severity::Restore => "restore",
    };
    json!({"type": "problem", "severity": severity, "what": problem.what, "why": problem.why, "hint": problem.hint})
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn current(progress: &Progress) -> String {
    progress.current.try_lock().map(|name| name.clone()).unwrap_or_default()
}

fn message(progress: &Progress) -> String {
    let (files, total) = (load(&progress.files), load(&progress.files_total));
    let files = count(files, "file", "files");
    let of = if total > 0 { format!(" of {}", number(total)) } else { String::new() };
    format!("{files}{of}  {}", clean(&current(progress)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [UNKNOWN, KNOWN] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn problems_for_programs() {
        let problem = Problem { severity: Severity::Source, what: "a".into(), why: "b".into(), hint: Some("c".into()) };
        let expected = json!({"type": "problem", "severity": "source", "what": "a", "why": "b", "hint": "c"});
        assert_eq!(problem_json(&problem), expected);
    }
}
