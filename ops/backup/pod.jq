# A pod that runs one command with what a trainer's pod has: settings, credentials, the store, the
# jobs' folders, and the labels by which the network lets it to Redis and to the store.
#
#   kubectl get statefulset/plinth-trainer -o json        (ray.mode static; or rayservice/plinth)
#     | jq --arg name plinth-backup --argjson command '["plinth", "backup", "s3://bucket/backups"]' \
#          -f ops/backup/pod.jq
#     | kubectl apply -f -
#
# --arg claim NAME         mounts a volume claim at /backups
# --arg schedule "17 3 * * *"   a CronJob that runs it again and again

def template:
  if .kind == "RayService"
  then .spec.rayClusterConfig.workerGroupSpecs[] | select(.groupName == "trainer").template
  else .spec.template
  end;

($ARGS.named.claim // "") as $claim
| ($ARGS.named.schedule // "") as $schedule
| .metadata.namespace as $namespace
| template
| (.metadata.labels + {"app.kubernetes.io/component": "backup"}) as $labels
| (.spec
   # Restarting is the schedule's, or whoever looks at why it failed.
   | .restartPolicy = "Never"
   | del(.initContainers, .topologySpreadConstraints)
   | .containers = [
       .containers[0]
       | .command = $command
       | del(.args, .ports, .lifecycle, .startupProbe, .livenessProbe, .readinessProbe)
     ]
   | if $claim == "" then . else
       .volumes += [{name: "backups", persistentVolumeClaim: {claimName: $claim}}]
       | .containers[0].volumeMounts += [{name: "backups", mountPath: "/backups"}]
     end
  ) as $spec
| if $schedule == ""
  then {
    apiVersion: "v1", kind: "Pod",
    metadata: {name: $name, namespace: $namespace, labels: $labels},
    spec: $spec
  }
  else {
    apiVersion: "batch/v1", kind: "CronJob",
    metadata: {name: $name, namespace: $namespace, labels: $labels},
    spec: {
      schedule: $schedule,
      concurrencyPolicy: "Forbid",
      jobTemplate: {spec: {
        backoffLimit: 0,
        template: {metadata: {labels: $labels}, spec: $spec}
      }}
    }
  }
  end
