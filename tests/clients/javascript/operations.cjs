// Feature groups, records, objects and a query through the AWS SDK for JavaScript v3.
const assert = require("node:assert/strict");
const { setTimeout: sleep } = require("node:timers/promises");
const { AthenaClient, GetQueryExecutionCommand, StartQueryExecutionCommand } = require("@aws-sdk/client-athena");
const { CreateBucketCommand, GetObjectCommand, ListObjectsV2Command, PutObjectCommand, S3Client } = require("@aws-sdk/client-s3");
const sagemaker = require("@aws-sdk/client-sagemaker");
const runtime = require("@aws-sdk/client-sagemaker-featurestore-runtime");

const control = new sagemaker.SageMakerClient();
const records = new runtime.SageMakerFeatureStoreRuntimeClient();
const s3 = new S3Client({ forcePathStyle: true }); // or the bucket becomes a part of the host's name
const athena = new AthenaClient();

const FeatureGroupName = `javascript-${Date.now()}`;
const record = (values) => Object.entries(values).map(([FeatureName, ValueAsString]) => ({ FeatureName, ValueAsString }));
const at = "2026-01-02T00:00:00Z";

async function step(what, work) {
  try {
    const answer = await work();
    console.log(`ok ${what}`);
    return answer;
  } catch (error) {
    console.log(`FAILED ${what}`);
    throw error;
  }
}

async function refused(client, command, name, status) {
  const error = await client.send(command).then(
    () => assert.fail(`expected ${name}`),
    (caught) => caught,
  );
  assert.equal(error.name, name, error);
  assert.equal(error.$metadata.httpStatusCode, status);
  assert.ok(error.$metadata.requestId, "a request id");
  assert.ok(error.message, "a message");
}

async function main() {
  const arn = await step("CreateFeatureGroup, DescribeFeatureGroup", async () => {
    const { FeatureGroupArn } = await control.send(
      new sagemaker.CreateFeatureGroupCommand({
        FeatureGroupName,
        RecordIdentifierFeatureName: "id",
        EventTimeFeatureName: "at",
        FeatureDefinitions: [
          { FeatureName: "id", FeatureType: "String" },
          { FeatureName: "at", FeatureType: "String" },
          { FeatureName: "amount", FeatureType: "Fractional" },
        ],
        OnlineStoreConfig: { EnableOnlineStore: true, StorageType: "Standard_V2" },
        OfflineStoreConfig: { S3StorageConfig: { S3Uri: "s3://javascript-offline/prefix" } },
      }),
    );
    let described;
    do {
      described = await control.send(new sagemaker.DescribeFeatureGroupCommand({ FeatureGroupName: FeatureGroupArn }));
    } while (described.FeatureGroupStatus === "Creating");
    assert.equal(described.FeatureGroupStatus, "Created");
    assert.ok(described.CreationTime instanceof Date && Math.abs(Date.now() - described.CreationTime) < 600_000);
    return FeatureGroupArn;
  });

  await step("PutRecord, GetRecord by name and by ARN, UpdateRecord, DeleteRecord", async () => {
    const strange = "a b+c/d?e&f=g%h#ü€😀";
    for (const id of ["a", strange]) {
      await records.send(new runtime.PutRecordCommand({ FeatureGroupName, Record: record({ id, at, amount: "0.10" }) }));
      const got = await records.send(
        new runtime.GetRecordCommand({ FeatureGroupName: arn, RecordIdentifierValueAsString: id, FeatureNames: ["amount", "id"] }),
      );
      assert.deepEqual(got.Record, record({ id, amount: "0.10" }));
    }
    const named = { FeatureGroupName: arn, RecordIdentifierValueAsString: "a" };
    await records.send(new runtime.UpdateRecordCommand({ ...named, Features: record({ amount: "7" }) }));
    const deleted = { FeatureGroupName, RecordIdentifierValueAsString: strange, EventTime: "2026-01-03T00:00:00Z" };
    await records.send(new runtime.DeleteRecordCommand({ ...deleted, DeletionMode: "HardDelete" }));
    const gone = await records.send(new runtime.GetRecordCommand({ FeatureGroupName, RecordIdentifierValueAsString: strange }));
    assert.equal(gone.Record, undefined);
  });

  await step("BatchWriteRecord, BatchGetRecord, ListRecords page by page", async () => {
    const Entries = [1, 2, 3].map((n) => ({ FeatureGroupName, Record: record({ id: `w${n}`, at, amount: `${n}` }) }));
    const written = await records.send(new runtime.BatchWriteRecordCommand({ Entries }));
    assert.deepEqual([written.Errors, written.UnprocessedEntries], [[], []]);
    const wanted = { FeatureGroupName, RecordIdentifiersValueAsString: ["a", "w2", "nobody"], FeatureNames: ["amount"] };
    const got = await records.send(new runtime.BatchGetRecordCommand({ Identifiers: [wanted] }));
    assert.deepEqual(
      got.Records.map((found) => [found.RecordIdentifierValueAsString, found.Record[0].ValueAsString]),
      [
        ["a", "7"],
        ["w2", "2"],
      ],
    );
    const listed = [];
    for await (const page of runtime.paginateListRecords({ client: records, pageSize: 2 }, { FeatureGroupName })) {
      listed.push(...page.RecordIdentifiers);
    }
    assert.deepEqual(listed.sort(), ["a", "w1", "w2", "w3"]);
  });

  await step("errors have their modelled names", async () => {
    const absent = { FeatureGroupName: "no-such-group", RecordIdentifierValueAsString: "a" };
    await refused(records, new runtime.GetRecordCommand(absent), "ResourceNotFound", 404);
    const faulty = { FeatureGroupName, Record: record({ id: "a", at: "today" }) };
    await refused(records, new runtime.PutRecordCommand(faulty), "ValidationError", 400);
    const unknown = { FeatureGroupName: "no-such-group" };
    await refused(control, new sagemaker.DescribeFeatureGroupCommand(unknown), "ResourceNotFound", 400);
  });

  await step("CreateBucket, PutObject, GetObject, ListObjectsV2", async () => {
    const object = { Bucket: `javascript-${Date.now()}`, Key: "folder/a b+c.csv" };
    await s3.send(new CreateBucketCommand({ Bucket: object.Bucket }));
    await s3.send(new PutObjectCommand({ ...object, Body: "id,amount\n1,0.5\n" }));
    assert.equal(await (await s3.send(new GetObjectCommand(object))).Body.transformToString(), "id,amount\n1,0.5\n");
    const listed = await s3.send(new ListObjectsV2Command({ Bucket: object.Bucket, Prefix: "folder/" }));
    assert.deepEqual(
      listed.Contents.map((found) => found.Key),
      [object.Key],
    );
  });

  await step("a query", async () => {
    const described = await control.send(new sagemaker.DescribeFeatureGroupCommand({ FeatureGroupName }));
    const { QueryExecutionId } = await athena.send(
      new StartQueryExecutionCommand({
        QueryString: `SELECT count(*) AS n FROM "${described.OfflineStoreConfig.DataCatalogConfig.TableName}"`,
        QueryExecutionContext: { Database: "sagemaker_featurestore" },
        ResultConfiguration: { OutputLocation: "s3://javascript-offline/results" },
      }),
    );
    let state;
    do {
      state = (await athena.send(new GetQueryExecutionCommand({ QueryExecutionId }))).QueryExecution.Status.State;
      await sleep(50);
    } while (["QUEUED", "RUNNING"].includes(state));
    assert.equal(state, "SUCCEEDED");
    const result = await s3.send(new GetObjectCommand({ Bucket: "javascript-offline", Key: `results/${QueryExecutionId}.csv` }));
    assert.equal(await result.Body.transformToString(), '"n"\n"7"\n'); // two puts, an update, a delete and three written at once
  });

  await step("DeleteFeatureGroup", () => control.send(new sagemaker.DeleteFeatureGroupCommand({ FeatureGroupName })));
}

main();
