// The services of plinth.v1, made of the protos when the program starts.

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const PROTOS = path.join(__dirname, "..", "..", "..", "protos");

// One service's client. file: "runs"; service: "RunService". A key goes with each call.
function connect(address, key, file, service) {
  const definition = loader.loadSync(`plinth/v1/${file}.proto`, {
    includeDirs: [PROTOS],
    keepCase: true, // run_id, as in the protos, instead of runId
    longs: String, // 64 bits do not fit into a number
    enums: String,
    defaults: true,
    oneofs: true,
  });
  const client = new (grpc.loadPackageDefinition(definition).plinth.v1[service])(
    address,
    grpc.credentials.createInsecure(), // grpc.credentials.createSsl() for TLS
  );
  const metadata = new grpc.Metadata();
  if (key) metadata.set("authorization", `Bearer ${key}`);
  return { client, metadata };
}

// A unary call as a promise, with a deadline.
function ask({ client, metadata }, method, request, seconds = 30) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + seconds * 1000;
    client[method](request, metadata, { deadline }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

module.exports = { grpc, connect, ask };
