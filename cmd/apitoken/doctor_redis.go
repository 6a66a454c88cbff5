package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// diagnoseRedis looks at a server's settings, by what store/redisstore asks of one.
func diagnoseRedis(ctx context.Context, d *diagnosis, client *redis.Client) {
	before := time.Now()
	now, err := client.Time(ctx).Result()
	if err != nil {
		d.say("bad", "server", "Look at the address, the user and the password.", "Redis does not answer: %v", err)
		return
	}
	// The clock was read between the two readings of ours.
	if off := max(before.Sub(now), time.Until(now)); off > 10*time.Second {
		d.say("bad", "clock", "Set the clocks by NTP.", "the server's clock differs from this machine's by %s", off.Round(time.Second))
	} else {
		d.say("ok", "clock", "", "the server's clock agrees with this machine's")
	}
	info, err := client.Info(ctx).Result()
	if err != nil {
		d.say("bad", "server", "The user needs the command INFO.", "INFO: %v", err)
		return
	}
	facts := infoOf(info)
	version := facts["redis_version"]
	if major, _, _ := strings.Cut(version, "."); len(major) == 1 && major < "7" {
		d.say("bad", "version", "Take Redis 7.0 or later.", "Redis %s", version)
	} else {
		d.say("ok", "version", "", "Redis %s", version)
	}
	if facts["role"] != "master" {
		d.say("bad", "primary", "Connect to the primary.", "this server is a replica, and takes no writes")
	}
	if facts["loading"] == "1" || facts["aof_last_write_status"] == "err" {
		d.say("bad", "disk", "Look at the server's disk and log.", "it is loading its data, or could not write its append-only file")
	}
	used, _ := strconv.ParseUint(facts["used_memory"], 10, 64) // absent: zero
	if most, _ := strconv.ParseUint(facts["maxmemory"], 10, 64); most > 0 && used > most/10*9 {
		d.say("bad", "memory", "Raise maxmemory: a server that is full takes no writes, revocations included.", "%s of %s are used", size(used), size(most))
	} else {
		d.say("ok", "memory", "", "%s are used", size(used))
	}
	diagnoseRedisConfig(ctx, d, client)
}

// infoOf reads the answer of INFO.
func infoOf(text string) map[string]string {
	facts := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			facts[name] = value
		}
	}
	return facts
}

func diagnoseRedisConfig(ctx context.Context, d *diagnosis, client *redis.Client) {
	get := func(name string) string {
		m, err := client.ConfigGet(ctx, name).Result()
		if err != nil {
			return ""
		}
		return m[name]
	}
	switch policy := get("maxmemory-policy"); policy {
	case "noeviction":
		d.say("ok", "eviction", "", "nothing is evicted")
	case "":
		d.say("warn", "settings", "Allow CONFIG GET, or look at maxmemory-policy, appendonly and appendfsync yourself.", "the server's settings cannot be read")
		return
	default:
		d.say("bad", "eviction", "Set maxmemory-policy noeviction: a rule that is evicted is a revocation undone.", "maxmemory-policy is %s", policy)
	}
	on, sync := get("appendonly"), get("appendfsync")
	if on == "yes" && sync == "always" {
		d.say("ok", "durability", "", "what is acknowledged is on the disk")
		return
	}
	d.say("warn", "durability", "Set appendonly yes and appendfsync always, unless the service's Options have WaitAOF or WaitReplicas.",
		"appendonly is %s, appendfsync is %s: a crash may bring back what was revoked in its last second", on, sync)
}
