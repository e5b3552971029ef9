// Chats, streamed: node chat.js HOST:PORT KEY MODEL QUESTION
const { connect } = require("./plinth.js");

async function main(address, key, model, question) {
  const { client, metadata } = connect(address, key, "generation", "GenerationService");
  const request = {
    model,
    messages: [{ role: "user", content: question }],
    options: { sampling: { temperature: 0, max_tokens: 64 } },
  };
  const deadline = Date.now() + 60_000;
  for await (const piece of client.StreamChat(request, metadata, { deadline })) {
    process.stdout.write(piece.text);
  }
  process.stdout.write("\n");
  client.close();
}

const given = process.argv.slice(2);
if (given.length !== 4) {
  console.error("node chat.js HOST:PORT KEY MODEL QUESTION");
  process.exit(2);
}
main(...given).catch((error) => {
  console.error(error.message); // "5 NOT_FOUND: the model …"
  process.exit(1);
});
