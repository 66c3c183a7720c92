//! `lowrank chat`: a conversation with a language model on the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use lowrank_data::chat::Message;
use lowrank_models::decoder::GenerationOptions;
use lowrank_models::{LanguageModel, ModelFolder, ModelKind};
use serde_json::Value;
use signal_hook::consts::SIGINT;

use crate::backend::{Device, device};
use crate::language::{Language, LanguageArgs, render};
use crate::sampling::SamplingArgs;
use crate::stream::{Stream, cut};

/// Options of `chat`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: LanguageArgs,
    /// Instructions to the model, given once before the conversation
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Exit status of a program ended by SIGINT.
const INTERRUPTED: i32 = 130;

/// Commands that can be typed beside messages.
const HELP: &str =
    "/reset forgets the conversation, /save FILE writes it, /exit ends; Ctrl-C stops an answer";

/// Ctrl-C: it stops the current answer, or ends the program between answers.
struct Interrupt {
    pressed: Arc<AtomicBool>,
    is_idle: Arc<AtomicBool>,
}

impl Interrupt {
    fn new() -> Result<Self> {
        let (pressed, is_idle) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let context = "cannot install the Ctrl-C handler";
        signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&is_idle))
            .context(context)?;
        signal_hook::flag::register(SIGINT, Arc::clone(&pressed)).context(context)?;
        Ok(Self { pressed, is_idle })
    }

    /// Runs an answer, which checks the flag to see whether to continue.
    fn during<T>(&self, answer: impl FnOnce(&AtomicBool) -> T) -> T {
        self.pressed.store(false, Ordering::Relaxed);
        self.is_idle.store(false, Ordering::Relaxed);
        let result = answer(&self.pressed);
        self.is_idle.store(true, Ordering::Relaxed);
        result
    }
}

/// An ongoing conversation.
struct Chat<'a> {
    folder: &'a ModelFolder,
    language: Language,
    options: GenerationOptions,
    stops: Vec<String>,
    stop_tokens: Vec<u32>,
    turn_end: Option<u32>,
    device: Device,
    system: Option<Message>,
    messages: Vec<Message>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    args.sampling.check()?;
    let folder = args.model.folder()?;
    ensure!(
        folder.kind() != ModelKind::Seq2Seq,
        "{}: is {}, which does not hold conversations; give its source with generate --prompt",
        folder.path().display(),
        folder.kind().describe()
    );
    let system = args.system.as_deref().map(|text| Message::new("system", text));
    // A missing template, or one that refuses a conversation, is reported before the weights are read.
    let first: Vec<Message> = system.iter().cloned().chain([Message::new("user", "Hello")]).collect();
    render(&folder, &first)?;
    let (mut options, mut stops) = args.sampling.resolve(folder.generation()?)?;
    if let Some(beams) = options.beams.take().filter(|beams| beams.count > 1) {
        eprintln!(
            "warning: num_beams = {} is ignored, since answers are shown as they are written",
            beams.count
        );
    }
    let device = device()?;
    let language = args.model.load(&folder, &device)?;
    let turn_end = language.turn_end(&folder)?;
    let messages = system.iter().cloned().collect();
    let stop_tokens = language.take_stop_tokens(&mut stops)?;
    let mut chat =
        Chat { folder: &folder, language, options, stops, stop_tokens, turn_end, device, system, messages };
    let interrupt = Interrupt::new()?;
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        eprintln!("{HELP}");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_terminal {
            eprint!("> ");
            std::io::stderr().flush().ok();
        }
        let Some(line) = lines.next() else { break };
        let line = line.context("cannot read standard input")?;
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            command if command.starts_with('/') => {
                if let Err(error) = chat.command(command) {
                    eprintln!("error: {error:#}");
                }
            }
            text => {
                if let Err(error) = interrupt.during(|pressed| chat.answer(text, pressed)) {
                    if !is_terminal {
                        return Err(error);
                    }
                    eprintln!("error: {error:#}");
                }
            }
        }
    }
    Ok(())
}

impl Chat<'_> {
    fn command(&mut self, command: &str) -> Result<()> {
        match command
            .split_once(char::is_whitespace)
            .map_or((command, ""), |(name, rest)| (name, rest.trim()))
        {
            ("/reset", "") => self.messages = self.system.iter().cloned().collect(),
            ("/save", "") => anyhow::bail!("/save needs the name of a file"),
            ("/save", path) => self.save(Path::new(path))?,
            _ => eprintln!("{HELP}"),
        }
        Ok(())
    }

    /// Writes the conversation in the format of `generate --messages`.
    fn save(&self, path: &Path) -> Result<()> {
        let messages: Value = serde_json::to_value(&self.messages)?;
        let text = serde_json::to_string_pretty(&messages)?;
        lowrank_checkpoint::write_atomic(path, format!("{text}\n").as_bytes())?;
        eprintln!("{}: {} messages", path.display(), self.messages.len());
        Ok(())
    }

    /// Answers a message. The text generated before the answer is stopped stays in the conversation; if an
    /// answer fails, the message is removed again.
    fn answer(&mut self, text: &str, pressed: &AtomicBool) -> Result<()> {
        self.messages.push(Message::new("user", text));
        let answer = self.generate(pressed);
        match answer {
            Ok(answer) if !answer.trim().is_empty() => {
                self.messages.push(Message::new("assistant", answer.trim()));
                Ok(())
            }
            other => {
                self.messages.pop();
                other.map(|_| eprintln!("(no answer)"))
            }
        }
    }

    fn generate(&self, pressed: &AtomicBool) -> Result<String> {
        let (language, stops) = (&self.language, &self.stops);
        let prompt = language.rendered_prompt(&render(self.folder, &self.messages)?)?;
        let unsettled = language.tokenizer.unsettled();
        let mut stream = Stream::default();
        let mut failure = None;
        let prompts = [prompt];
        let generated = language.model.generate(
            &prompts,
            &self.options,
            &language.adapters,
            &self.device,
            |_, new| {
                let mut step = || -> Result<bool> {
                    let is_end = |id: &u32| self.turn_end == Some(*id) || self.stop_tokens.contains(id);
                    if new.last().is_some_and(is_end) {
                        return Ok(false);
                    }
                    let text = language.continuation(&prompts[0], new)?;
                    stream.advance(&text, stops, unsettled)?;
                    Ok(!pressed.load(Ordering::Relaxed) && stops.iter().all(|stop| !text.contains(stop)))
                };
                step().unwrap_or_else(|error| {
                    failure = Some(error);
                    false
                })
            },
        )?;
        if let Some(error) = failure {
            return Err(error);
        }
        let text = cut(language.continuation(&prompts[0], &generated[0].ids)?, stops);
        stream.advance(&text, &[], 0)?;
        println!();
        Ok(text)
    }
}
