// npx tsx nats-subscriber.ts sub_….json sub_….creds seen.txt: prints events, each once, over restarts too.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { jetstream } from "@nats-io/jetstream";
import { connect, credsAuthenticator } from "@nats-io/transport-node";

const [connection, credentials, seenFile] = process.argv.slice(2);
const { url, stream, durable, inbox_prefix, api_prefix } = JSON.parse(readFileSync(connection, "utf8"));
const authenticator = credsAuthenticator(readFileSync(credentials));
const client = await connect({ servers: url, authenticator, inboxPrefix: inbox_prefix });
const consumer = await jetstream(client, { apiPrefix: api_prefix }).consumers.get(stream, durable);
let seen = existsSync(seenFile) ? Number(readFileSync(seenFile, "utf8")) : 0;
for await (const message of await consumer.consume({ max_messages: 1 })) {
  const event = message.json<{ position: number; type: string; subject: string }>();
  if (event.position > seen) {
    console.log(event.position, event.type, event.subject);
    writeFileSync(seenFile, String((seen = event.position)));
  }
  message.ack();
}
