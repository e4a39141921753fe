//! `sconce chat`: a conversation in the terminal.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use sconce::{ChatInput, Engine, Error, GenerationRequest, SamplingParams, StreamEvent};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::engine::EngineArgs;
use super::sampling::SamplingArgs;
use super::shown::Shown;
use super::{Failure, progress};

const HELP: &str = "/reset  forget the conversation\n/exit   leave (also Ctrl-D)\nCtrl-C  stop an answer\n";

/// Flags of `sconce chat`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF file, a folder, or an id of the Hugging Face hub [default: the starter model].
    #[arg(long, short, value_name = "PATH|ID")]
    model: Option<String>,
    /// Tells the model how to behave.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What the user typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input<'a> {
    Message(&'a str),
    Reset,
    Help,
    Exit,
    Nothing,
    Unknown(&'a str),
}

impl<'a> Input<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        match line.trim() {
            "" => Self::Nothing,
            "/exit" | "/quit" => Self::Exit,
            "/reset" => Self::Reset,
            "/help" => Self::Help,
            command if command.starts_with('/') => Self::Unknown(command),
            message => Self::Message(message),
        }
    }
}

/// Runs `sconce chat`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let adapter = args.engine.only_adapter()?;
    let engine = args.engine.load(args.model.as_deref(), progress::progress())?;
    say(&format!("{} on {}. /help for help.\n", engine.handle().info().id, engine.handle().info().device))?;
    let (params, system) = (args.sampling.params(), args.system);
    let mut chat = Chat { engine, adapter, params, system, messages: Vec::new() };
    chat.reset();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(chat.run())?;
    Ok(ExitCode::SUCCESS)
}

struct Chat {
    engine: Engine,
    adapter: Option<String>,
    params: SamplingParams,
    system: Option<String>,
    messages: Vec<Value>,
}

impl Chat {
    fn reset(&mut self) {
        self.messages.clear();
        self.messages.extend(self.system.iter().map(|s| json!({"role": "system", "content": s})));
    }

    async fn run(&mut self) -> io::Result<()> {
        let mut lines = read_lines();
        loop {
            say("> ")?;
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => {
                    say("\n(/exit or Ctrl-D to leave)\n")?;
                    continue;
                }
            };
            let Some(line) = line else {
                return say("\n");
            };
            match Input::parse(&line) {
                Input::Message(message) => self.answer(message).await?,
                Input::Reset => self.reset(),
                Input::Help => say(HELP)?,
                Input::Unknown(command) => say(&format!("unknown command {command}\n{HELP}"))?,
                Input::Nothing => {}
                Input::Exit => return Ok(()),
            }
        }
    }

    /// Asks for an answer and prints it. A question that fails is forgotten; a stopped answer is kept as it is.
    async fn answer(&mut self, message: &str) -> io::Result<()> {
        self.messages.push(json!({"role": "user", "content": message}));
        match self.stream_answer().await? {
            Ok(answer) => self.messages.push(json!({"role": "assistant", "content": answer})),
            Err(error) => {
                self.messages.pop();
                eprintln!("error: {error}");
            }
        }
        Ok(())
    }

    async fn stream_answer(&self) -> io::Result<Result<String, Error>> {
        let input = ChatInput { messages: self.messages.clone(), ..ChatInput::default() };
        let request = GenerationRequest::chat(input).with_params(self.params.clone());
        let request = request.with_marks(self.engine.handle().answer_form().marks().clone());
        let request = GenerationRequest { adapter: self.adapter.clone(), ..request };
        let mut stream = match self.engine.stream(request) {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        let (mut answer, mut out) = (Shown::new(stream.answer_reader().clone()), io::stdout());
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                // Dropping the stream cancels the request.
                _ = tokio::signal::ctrl_c() => None,
            };
            match event {
                Some(Ok(StreamEvent::Token(token))) => {
                    answer.push(&token.text, false, &mut out)?;
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Ok(Err(error)),
                None => break,
            }
        }
        answer.push("", true, &mut out)?;
        say("\n")?;
        Ok(Ok(answer.into_content()))
    }
}

/// Prints at once. Unlike `print!`, it does not panic where nobody listens.
fn say(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Lines of stdin; what is not UTF-8 shows as U+FFFD. The thread that waits must not keep the program from ending.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().split(b'\n').map_while(Result::ok) {
            if sender.blocking_send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}
