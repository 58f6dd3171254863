// Loaded before every script: nothing may leave the machine, and who tries is written down.
const fs = require("node:fs");
const net = require("node:net");

const connect = net.Socket.prototype.connect;
net.Socket.prototype.connect = function (...given) {
  const [options] = Array.isArray(given[0]) ? given[0] : given;
  const host = (typeof options === "object" ? options.host : given[1]) ?? "localhost";
  if (!/^(127\.|::1$|localhost$)/.test(host)) {
    fs.appendFileSync(process.env.GUARD_LOG, `connection to ${host}\n`);
    throw new Error(`the test lets nothing leave the machine: connection to ${host}`);
  }
  return connect.apply(this, given);
};
