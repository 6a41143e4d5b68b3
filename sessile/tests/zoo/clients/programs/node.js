// The https module: an Agent keeps the sessions of its hosts.
// Arguments: mechanism, file of the CA, server name, port, connections.

const { readFileSync } = require("fs");
const { constants } = require("crypto");
const https = require("https");

const [mechanism, ca, name, port, connections] = process.argv.slice(2);
console.log("version", process.versions.node);

const version = mechanism === "psk" ? "TLSv1.3" : "TLSv1.2";
const agent = new https.Agent({
  keepAlive: false,
  ca: readFileSync(ca),
  minVersion: version,
  maxVersion: version,
  secureOptions: mechanism === "session-id" ? constants.SSL_OP_NO_TICKET : 0,
});

function connect(left) {
  if (left === 0) return;
  const where = { host: "127.0.0.1", port, path: "/verdict.json", servername: name, headers: { host: name }, agent };
  https.get(where, (response) => {
    const resumed = response.socket.isSessionReused();
    response.setEncoding("utf8");
    let body = "";
    response.on("data", (part) => (body += part));
    response.socket.on("close", () => {
      console.log(resumed ? "resumed" : "full", body.trim());
      connect(left - 1);
    });
  });
}

connect(Number(connections));
