//! [`ChatTemplate`]: a conversation to a prompt, by the model's own Jinja template.

/// A conversation and what its template may ask for.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// A list of `{"role", "content", ...}` objects, as OpenAI's clients send them.
    pub messages: Vec<serde_json::Value>,
    /// Tools that the template may present to the model.
    pub tools: Option<Vec<serde_json::Value>>,
    /// More variables for the template.
    pub template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// Whether the template opens the assistant's turn. Normally true.
    pub add_generation_prompt: bool,
    /// Whether the last message is an assistant's to be continued rather than answered.
    pub continue_final_message: bool,
}

/// A rendered conversation, which remembers what users wrote.
#[derive(Debug, Clone)]
pub struct RenderedChat {
    /// ...
}

impl RenderedChat {
    /// The prompt as text.
    pub fn text(&self) -> String;
}

impl ChatTemplate {
    pub fn new(source: String, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self>;
    /// From chat_template.jinja or tokenizer_config.json (a string, or a list of named templates, of which `default`). None if there is none.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>>;
    pub fn from_gguf(path: &Path, metadata: &GgufMetadata, tokenizer: &Tokenizer) -> Result<Option<Self>>;
    /// Errors: InvalidRequest at `messages` with the template's own words.
    pub fn render(&self, input: &ChatInput, tokenizer: &Tokenizer) -> Result<RenderedChat>;
}
