/**
 * The token through `@icp-sdk/canisters`, which knows nothing of this ledger: a balance, a transfer, the balance after it.
 *
 *   npx tsx examples/token.ts client.toml key.pem TO AMOUNT
 */
import { readFileSync } from "node:fs";
import { IcrcLedgerCanister } from "@icp-sdk/canisters/ledger/icrc";
import { Principal } from "@icp-sdk/core/principal";
import { parse } from "smol-toml";
import { agent, keyFromPem, type LedgerSettings } from "../src/index";

const [file, key, to, amount] = process.argv.slice(2);
if (!file || !key || !to || !amount) {
  console.error("usage: token.ts client.toml key.pem TO AMOUNT");
  process.exit(2);
}
const settings = parse(readFileSync(file, "utf8")) as unknown as LedgerSettings;
const identity = keyFromPem(readFileSync(key, "utf8"));
const ledger = IcrcLedgerCanister.create({
  agent: await agent(settings, identity),
  canisterId: Principal.fromText(settings.canister_id),
});
const own = { owner: identity.getPrincipal() };
const before = await ledger.balance(own);
const fee = await ledger.transactionFee({});
const block = await ledger.transfer({
  to: { owner: Principal.fromText(to), subaccount: [] },
  amount: BigInt(amount),
});
const after = await ledger.balance({ ...own, certified: true });
if (after !== before - fee - BigInt(amount)) throw new Error(`${before} - ${fee} - ${amount} is not ${after}`);
console.log(JSON.stringify({ block: block.toString(), balance: after.toString() }));
