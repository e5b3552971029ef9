// Starts a pipeline and watches its run to the end, over as many connections as that takes:
// node watch_run.js HOST:PORT KEY RUN_ID PIPELINE.yaml
const fs = require("node:fs");
const { setTimeout: sleep } = require("node:timers/promises");
const { grpc, connect, ask } = require("./plinth.js");

// What a broken connection looks like, and a server that stops.
const BROKEN = new Set([grpc.status.UNAVAILABLE, grpc.status.CANCELLED, grpc.status.INTERNAL]);

// The run's states, each once. A response's resume_token is the position behind it.
async function* watch(runs, name, patience_s = 150) {
  let resume_token = "";
  let brokenSince = null;
  for (;;) {
    try {
      for await (const event of runs.client.WatchRun({ name, resume_token }, runs.metadata)) {
        brokenSince = null;
        resume_token = event.resume_token || resume_token;
        if (event.run) yield event.run; // without a run it is a heartbeat
      }
      return;
    } catch (error) {
      brokenSince ??= Date.now();
      if (!BROKEN.has(error.code) || Date.now() - brokenSince > patience_s * 1000) throw error;
      await sleep(500);
    }
  }
}

async function main(address, key, run_id, file) {
  const runs = connect(address, key, "runs", "RunService");
  const pipeline_yaml = fs.readFileSync(file, "utf8");
  const { run } = await ask(runs, "CreateRun", { run_id, run: { spec: { pipeline_yaml } } });
  let last = run;
  for await (const state of watch(runs, run.name)) {
    last = state;
    const steps = state.status.steps.map((step) => `${step.step_id} ${step.state}`);
    console.log(state.status.state, steps.join(", "));
  }
  runs.client.close();
  if (last.status.state !== "RUN_STATE_SUCCEEDED") throw new Error(last.status.error);
}

const given = process.argv.slice(2);
if (given.length !== 4) {
  console.error("node watch_run.js HOST:PORT KEY RUN_ID PIPELINE.yaml");
  process.exit(2);
}
main(...given).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
