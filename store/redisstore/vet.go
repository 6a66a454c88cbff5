package redisstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// vetEvery is how long a server that was found safe is taken for safe by namespaces that open.
const vetEvery = time.Minute

// vet looks whether the primary of key may hold this store, and returns its replication id: the script that opens the
// namespace checks that it runs on the same server.
func (s *Store) vet(ctx context.Context, key string) (string, error) {
	var node pipeliner = s.client
	if s.cluster != nil {
		master, err := s.cluster.MasterForKey(ctx, key)
		if err != nil {
			return "", err
		}
		node = master
	}
	pipe := node.Pipeline()
	replication := pipe.Info(ctx, "replication")
	if _, err := pipe.Exec(ctx); err != nil {
		return "", err
	}
	replid := infoField(replication.Val(), "master_replid")
	if role := infoField(replication.Val(), "role"); role != "master" {
		return "", fmt.Errorf("%w: the server is a %q", errAway, role)
	}
	s.mu.Lock()
	at := s.vetted[replid]
	s.mu.Unlock()
	if replid != "" && !at.IsZero() && time.Since(at) < vetEvery {
		return replid, nil
	}

	pipe = node.Pipeline()
	replication = pipe.Info(ctx, "replication")
	server, memory, persistence := pipe.Info(ctx, "server"), pipe.Info(ctx, "memory"), pipe.Info(ctx, "persistence")
	config := map[string]*redis.MapStringStringCmd{}
	for _, name := range [...]string{configPolicy, configAppend, configFsync, configTruncated} {
		config[name] = pipe.ConfigGet(ctx, name)
	}
	if _, err := pipe.Exec(ctx); err != nil && !isServerError(err) {
		return "", err
	}
	for _, cmd := range [...]*redis.StringCmd{replication, server, memory, persistence} {
		if err := cmd.Err(); err != nil {
			return "", err
		}
	}
	facts := map[string]string{
		configPolicy: infoField(memory.Val(), "maxmemory_policy"),
		configAppend: map[string]string{"0": "no", "1": "yes"}[infoField(persistence.Val(), "aof_enabled")],
	}
	for name, cmd := range config {
		v, err := cmd.Result()
		switch {
		case err == nil && v[name] != "":
			facts[name] = v[name]
		case err != nil && !isServerError(err):
			return "", err
		}
	}
	replid = infoField(replication.Val(), "master_replid")
	if err := s.judge(facts, replid, infoField(server.Val(), "redis_version")); err != nil {
		s.log.Error("redisstore: server refused", "error", err)
		return "", err
	}
	if err := s.wholeLog(ctx, node, facts[configTruncated]); err != nil {
		return "", err
	}
	if n, _ := strconv.Atoi(infoField(replication.Val(), "connected_slaves")); n > 0 && s.o.WaitReplicas == 0 {
		s.log.Warn("redisstore: the server has replicas, and no write waits for them: a failover may lose what was acknowledged (Options.WaitReplicas)")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.vetted) > 1000 {
		clear(s.vetted)
	}
	s.vetted[replid] = time.Now()
	return replid, nil
}

const (
	configPolicy    = "maxmemory-policy"
	configAppend    = "appendonly"
	configFsync     = "appendfsync"
	configTruncated = "aof-load-truncated"
)

// wholeLog makes a server that was started again write its append-only file anew before it is used.
//
// A crash may cut the file in the middle of a script's writes. With aof-load-truncated, the default, the server then starts
// without them, as it must, but all versions until the middle of 2026 take away the last command only, and leave the others
// and the MULTI before them in the file. What is written afterwards follows there, its EXEC ends that MULTI too, and after
// one more crash half a change comes back. A file that was rewritten since the server's start has no such rest.
func (s *Store) wholeLog(ctx context.Context, node pipeliner, truncated string) error {
	asked := false
	for wait := firstWait; ; {
		pipe := node.Pipeline()
		cmd := pipe.Info(ctx, "persistence")
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
		info := cmd.Val()
		rewriting := infoField(info, "aof_rewrite_in_progress") == "1" || infoField(info, "aof_rewrite_scheduled") == "1"
		rewritten := !strings.HasPrefix(infoField(info, "aof_last_rewrite_time_sec"), "-") && infoField(info, "aof_last_bgrewrite_status") == "ok"
		switch {
		case infoField(info, "aof_enabled") == "0", truncated == "no", rewritten && !rewriting:
			return nil
		case rewriting:
		case asked:
			return fmt.Errorf("%w: the server fails to rewrite its append-only file: see its log", ErrFull)
		default:
			pipe := node.Pipeline()
			rewrite := pipe.BgRewriteAOF(ctx)
			_, _ = pipe.Exec(ctx)
			switch err := rewrite.Err(); {
			case err == nil:
				asked = true
			case hasCode(err, "NOPERM"), hasCode(err, "ERR unknown command"):
				if s.o.TrustServerConfig {
					return nil
				}
				return fmt.Errorf("%w: after a start its append-only file must be rewritten, as it may end within a change, and BGREWRITEAOF is forbidden (%w): "+
					"allow it, have it run, set aof-load-truncated no, or vouch with Options.TrustServerConfig", ErrUnsafe, err)
			case !isServerError(err):
				return err
			}
			// Whatever else the server says, as that another process has asked: the next look tells.
		}
		if !pause(ctx, s.ctx, &wait) {
			return fmt.Errorf("%w: the server rewrites its append-only file after its start", errAway)
		}
	}
}

func isServerError(err error) bool {
	_, ok := serverError(err)
	return ok
}

// judge says what is wrong with a server; "" among the facts: it does not tell.
func (s *Store) judge(facts map[string]string, replid, version string) error {
	o := &s.o
	if replid == "" {
		return fmt.Errorf("%w: INFO does not tell master_replid, so a failover could not be noticed", ErrUnsafe)
	}
	if o.WaitAOF && !atLeast(version, 7, 2) {
		return fmt.Errorf("%w: Options.WaitAOF takes WAITAOF, of Redis 7.2; this is %s", ErrUnsafe, version)
	}
	hidden := func(name, want, unless string) error {
		if o.TrustServerConfig {
			return nil
		}
		return fmt.Errorf("%w: CONFIG GET %s is forbidden; it must be %s. Options.TrustServerConfig vouches for it%s", ErrUnsafe, name, want, unless)
	}
	if !o.InsecureMayEvict {
		switch facts[configPolicy] {
		case "noeviction":
		case "":
			if err := hidden(configPolicy, "noeviction", ""); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: maxmemory-policy is %s: an evicted rule is a revocation undone; set noeviction, or Options.InsecureMayEvict",
				ErrUnsafe, facts[configPolicy])
		}
	}
	if o.InsecureMayLoseWrites || o.WaitReplicas > 0 && !o.WaitAOF && !o.RestartLosesNothing {
		return nil
	}
	const unless = ", Options.WaitReplicas makes it unnecessary, Options.InsecureMayLoseWrites does without"
	switch facts[configAppend] {
	case "yes":
	case "":
		if err := hidden(configAppend, "yes", unless); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: appendonly is %s: a crash loses acknowledged writes; set appendonly yes and appendfsync always, or Options.WaitReplicas, or Options.InsecureMayLoseWrites",
			ErrUnsafe, facts[configAppend])
	}
	if o.WaitAOF {
		return nil
	}
	switch facts[configFsync] {
	case "always":
	case "":
		return hidden(configFsync, "always", unless)
	default:
		return fmt.Errorf("%w: appendfsync is %s: a crash loses acknowledged writes; set always, or Options.WaitAOF, WaitReplicas or InsecureMayLoseWrites",
			ErrUnsafe, facts[configFsync])
	}
	return nil
}

func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func atLeast(version string, major, minor int) bool {
	a, rest, _ := strings.Cut(version, ".")
	b, _, _ := strings.Cut(rest, ".")
	x, _ := strconv.Atoi(a)
	y, _ := strconv.Atoi(b)
	return x > major || x == major && y >= minor
}
