// Feature groups, records and objects through the AWS SDK for Java v2.

import java.util.List;
import software.amazon.awssdk.core.sync.RequestBody;
import software.amazon.awssdk.http.urlconnection.UrlConnectionHttpClient;
import software.amazon.awssdk.services.s3.S3Client;
import software.amazon.awssdk.services.sagemaker.SageMakerClient;
import software.amazon.awssdk.services.sagemaker.model.FeatureDefinition;
import software.amazon.awssdk.services.sagemaker.model.FeatureGroupStatus;
import software.amazon.awssdk.services.sagemaker.model.FeatureGroupSummary;
import software.amazon.awssdk.services.sagemaker.model.FeatureType;
import software.amazon.awssdk.services.sagemakerfeaturestoreruntime.SageMakerFeatureStoreRuntimeClient;
import software.amazon.awssdk.services.sagemakerfeaturestoreruntime.model.BatchGetRecordIdentifier;
import software.amazon.awssdk.services.sagemakerfeaturestoreruntime.model.BatchGetRecordResponse;
import software.amazon.awssdk.services.sagemakerfeaturestoreruntime.model.FeatureValue;
import software.amazon.awssdk.services.sagemakerfeaturestoreruntime.model.ResourceNotFoundException;
import software.amazon.awssdk.services.sagemakerfeaturestoreruntime.model.ValidationErrorException;

public class Operations {
    interface Step {
        void run() throws Exception;
    }

    static void step(String what, Step work) throws Exception {
        try {
            work.run();
            System.out.println("ok " + what);
        } catch (Throwable error) {
            System.out.println("FAILED " + what);
            throw error;
        }
    }

    static void check(boolean holds, Object seen) {
        if (!holds) {
            throw new AssertionError(String.valueOf(seen));
        }
    }

    static FeatureValue value(String name, String value) {
        return FeatureValue.builder().featureName(name).valueAsString(value).build();
    }

    static FeatureDefinition feature(String name, FeatureType type) {
        return FeatureDefinition.builder().featureName(name).featureType(type).build();
    }

    public static void main(String[] arguments) throws Exception {
        String group = "java-" + System.currentTimeMillis();
        String at = "2026-01-02T00:00:00Z";
        String strange = "a b+c/d?e&f=g%h#ü€😀";
        UrlConnectionHttpClient.Builder http = UrlConnectionHttpClient.builder();
        SageMakerClient control = SageMakerClient.builder().httpClientBuilder(http).build();
        SageMakerFeatureStoreRuntimeClient records = SageMakerFeatureStoreRuntimeClient.builder().httpClientBuilder(http).build();
        // forcePathStyle: or the bucket becomes a part of the host's name
        S3Client s3 = S3Client.builder().httpClientBuilder(http).forcePathStyle(true).build();

        step("CreateFeatureGroup, DescribeFeatureGroup, ListFeatureGroups", () -> {
            String arn = control.createFeatureGroup(request -> request
                .featureGroupName(group)
                .recordIdentifierFeatureName("id")
                .eventTimeFeatureName("at")
                .featureDefinitions(
                    feature("id", FeatureType.STRING), feature("at", FeatureType.STRING), feature("amount", FeatureType.FRACTIONAL))
                .onlineStoreConfig(online -> online.enableOnlineStore(true))).featureGroupArn();
            FeatureGroupStatus status;
            do {
                status = control.describeFeatureGroup(request -> request.featureGroupName(arn)).featureGroupStatus();
            } while (status == FeatureGroupStatus.CREATING);
            check(status == FeatureGroupStatus.CREATED, status);
            List<FeatureGroupSummary> listed =
                control.listFeatureGroups(request -> request.nameContains(group)).featureGroupSummaries();
            check(listed.size() == 1 && listed.get(0).featureGroupArn().equals(arn), listed);
        });

        step("PutRecord, GetRecord", () -> {
            for (String id : List.of("a", strange)) {
                records.putRecord(request -> request
                    .featureGroupName(group).record(value("id", id), value("at", at), value("amount", "0.10")));
                List<FeatureValue> got = records.getRecord(request -> request
                    .featureGroupName(group).recordIdentifierValueAsString(id).featureNames("amount", "id")).record();
                check(got.equals(List.of(value("id", id), value("amount", "0.10"))), got);
            }
            check(!records.getRecord(request -> request
                .featureGroupName(group).recordIdentifierValueAsString("nobody")).hasRecord(), "nobody has a record");
        });

        step("BatchGetRecord, DeleteRecord", () -> {
            BatchGetRecordIdentifier wanted = BatchGetRecordIdentifier.builder()
                .featureGroupName(group).recordIdentifiersValueAsString("a", strange, "nobody").featureNames("amount").build();
            BatchGetRecordResponse got = records.batchGetRecord(request -> request.identifiers(wanted));
            check(got.records().size() == 2 && got.hasErrors() && got.errors().isEmpty(), got);
            records.deleteRecord(request -> request
                .featureGroupName(group).recordIdentifierValueAsString(strange).eventTime("2026-01-03T00:00:00Z"));
            check(records.batchGetRecord(request -> request.identifiers(wanted)).records().size() == 1, "the deleted one");
        });

        step("errors have their modelled classes", () -> {
            try {
                records.getRecord(request -> request.featureGroupName("no-such-group").recordIdentifierValueAsString("a"));
                check(false, "found");
            } catch (ResourceNotFoundException error) {
                check(error.statusCode() == 404 && error.requestId() != null, error);
            }
            try {
                records.putRecord(request -> request.featureGroupName(group).record(value("id", "a"), value("at", "today")));
                check(false, "accepted");
            } catch (ValidationErrorException error) {
                check(error.statusCode() == 400 && error.awsErrorDetails().errorMessage().contains("at"), error);
            }
        });

        step("CreateBucket, PutObject, GetObject, ListObjectsV2", () -> {
            String key = "folder/a b+c.csv";
            s3.createBucket(request -> request.bucket(group));
            s3.putObject(request -> request.bucket(group).key(key), RequestBody.fromString("id,amount\n1,0.5\n"));
            check(s3.getObjectAsBytes(request -> request.bucket(group).key(key)).asUtf8String().equals("id,amount\n1,0.5\n"), key);
            check(s3.listObjectsV2(request -> request.bucket(group).prefix("folder/")).contents().get(0).key().equals(key), key);
        });

        step("DeleteFeatureGroup", () -> control.deleteFeatureGroup(request -> request.featureGroupName(group)));
    }
}
