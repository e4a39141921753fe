// Requests to the server, and the streams that it answers with.

/** An error as the API spells it. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.param = error?.param ?? null;
  }
}

/** What `promise` gives; an error of the network is one of the API, an abort stays what it is. */
async function reached(promise, message) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, { message });
  }
}

async function open(path, key, options = {}) {
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await reached(fetch(path, { ...options, headers }), "The server cannot be reached.");
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new ApiError(response.status, body?.error);
  }
  return response;
}

/** The JSON at `path`. */
export async function get(path, key) {
  return (await open(path, key)).json();
}

/** The records of a streamed answer, as they come: /generate's end with a zero byte, the others are server-sent events. */
export async function* stream(path, body, key, signal) {
  const headers = { "content-type": "application/json" };
  const response = await open(path, key, { method: "POST", headers, body: JSON.stringify(body), signal });
  const isEvents = response.headers.get("content-type").startsWith("text/event-stream");
  for await (const part of split(response.body, isEvents ? "\n\n" : "\0")) {
    const json = isEvents ? part.replace(/^data: /, "") : part;
    if (json === "[DONE]") return;
    const record = JSON.parse(json);
    if (record.error) throw new ApiError(200, record.error);
    yield record;
  }
}

async function* split(body, separator) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reached(reader.read(), "The connection broke off.");
    if (done) return;
    const parts = (text + value).split(separator);
    text = parts.pop();
    yield* parts;
  }
}
