/**
 * Rents the cheapest plain VM for two hours, and waits until the ledger has verified it:
 *
 *   npx tsx examples/rent.ts client.toml key.pem MANIFEST-URL MANIFEST-SHA256 id.pub
 */
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { parse } from "smol-toml";
import { connect, keyFromPem, ok, type LedgerSettings, type Request } from "../src/index";

const [settings, key, url, digest, sshKey] = process.argv.slice(2);
if (!settings || !key || !url || !digest || !sshKey) {
  console.error("usage: rent.ts client.toml key.pem MANIFEST-URL MANIFEST-SHA256 id.pub");
  process.exit(2);
}
const ledger = await connect(
  parse(readFileSync(settings, "utf8")) as unknown as LedgerSettings,
  keyFromPem(readFileSync(key, "utf8")),
);

ok(await ledger.register_developer());
const request: Request = {
  kind: { plain: null },
  vcpus: 1,
  memory_mib: 1024n,
  storage_gib: { limited: 10n },
  bandwidth_mbps: { limited: 1n },
  gpus: 0,
  period_s: 7200n,
  max_price_per_hour: 1_000_000_000n,
  min_grade: { "host-signed": null },
  at_rest: { any: null },
  min_provider_reputation: 0n,
  region: [],
};
const [best] = ok(await ledger.match_offerings(request));
if (!best) throw new Error("no offering fits");
console.error(`offering ${best.offering.id} of ${best.offering.provider_name}: ${best.total} × 10⁻⁹ DCT`);

// The same memo is the same contract: this call can be repeated when its answer was lost.
const id = ok(
  await ledger.rent({
    request,
    offering: best.offering.id,
    image: { url, manifest: Uint8Array.from(Buffer.from(digest, "hex")) },
    ssh_public_keys: [readFileSync(sshKey, "utf8").trim()],
    user_data: new Uint8Array(),
    ports: [],
    allowed_measurements: [],
    min_tcb: { bootloader: [], fmc: [], microcode: [], snp: [], tee: [] },
    tls_name: [],
    max_total: best.total,
    memo: randomBytes(8).readBigUInt64BE(),
  }),
);
const hex = Buffer.from(id).toString("hex");
console.log(hex);

for (;;) {
  const { state, endpoint } = ok(await ledger.contract(id));
  if ("active" in state) {
    console.log(`active at ${endpoint[0]?.address}`);
    break;
  }
  if ("ended" in state) throw new Error(`contract ${hex} ended: ${JSON.stringify(state.ended)}`);
  await new Promise((resolve) => setTimeout(resolve, 500));
}
