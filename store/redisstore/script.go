package redisstore

import (
	"context"
	"crypto/sha1"
	_ "embed" // the scripts
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/prologue.lua
var luaPrologue string

//go:embed lua/known.lua
var luaKnown string

//go:embed lua/open.lua
var luaOpen string

//go:embed lua/apply.lua
var luaApply string

//go:embed lua/get.lua
var luaGet string

//go:embed lua/head.lua
var luaHead string

//go:embed lua/readonly.lua
var luaReadOnly string

//go:embed lua/clock.lua
var luaClock string

//go:embed lua/follow.lua
var luaFollow string

//go:embed lua/records.lua
var luaRecords string

//go:embed lua/ends.lua
var luaEnds string

//go:embed lua/events.lua
var luaEvents string

//go:embed lua/purge.lua
var luaPurge string

//go:embed lua/purgeevents.lua
var luaPurgeEvents string

// script is a Lua script and the name under which servers keep it.
type script struct{ source, sha string }

func newScript(parts ...string) *script {
	source := strings.Join(parts, "\n")
	sum := sha1.Sum([]byte(source)) // the server's choice of a name, not a matter of security
	return &script{source, hex.EncodeToString(sum[:])}
}

var (
	scriptOpen        = newScript(luaPrologue, luaOpen)
	scriptApply       = newScript(luaPrologue, luaKnown, luaApply)
	scriptGet         = newScript(luaPrologue, luaKnown, luaGet)
	scriptHead        = newScript(luaPrologue, luaKnown, luaHead)
	scriptReadOnly    = newScript(luaPrologue, luaKnown, luaReadOnly)
	scriptClock       = newScript(luaPrologue, luaKnown, luaClock)
	scriptFollow      = newScript(luaPrologue, luaKnown, luaFollow)
	scriptRecords     = newScript(luaPrologue, luaKnown, luaRecords)
	scriptEnds        = newScript(luaPrologue, luaKnown, luaEnds)
	scriptEvents      = newScript(luaPrologue, luaKnown, luaEvents)
	scriptPurge       = newScript(luaPrologue, luaKnown, luaPurge)
	scriptPurgeEvents = newScript(luaPrologue, luaKnown, luaPurgeEvents)
)

// command is the script as a command: by name, or with its text for a server that doesn't know it yet.
func (sc *script) command(ctx context.Context, whole bool, key string, args []any) *redis.Cmd {
	all := make([]any, 0, len(args)+4)
	if whole {
		all = append(all, "eval", sc.source, 1, key)
	} else {
		all = append(all, "evalsha", sc.sha, 1, key)
	}
	cmd := redis.NewCmd(ctx, append(all, args...)...)
	cmd.SetFirstKeyPos(3)
	return cmd
}

// run runs a script on the primary of key. It blocks as long as the client does.
func (s *Store) run(ctx context.Context, sc *script, key string, args []any) ([]any, error) {
	cmd := sc.command(ctx, false, key, args)
	err := s.client.Process(ctx, cmd)
	if err != nil && hasCode(err, "NOSCRIPT") {
		cmd = sc.command(ctx, true, key, args)
		err = s.client.Process(ctx, cmd)
	}
	return answer(cmd, err)
}

func answer(cmd *redis.Cmd, err error) ([]any, error) {
	if err != nil {
		return nil, err
	}
	list, err := cmd.Slice()
	if err != nil || len(list) == 0 {
		return nil, errValue(fmt.Sprintf("a script answered %v, %v", cmd.Val(), err))
	}
	return list, nil
}

// waits tells whether writes wait for replicas or disks.
func (s *Store) waits() bool { return s.o.WaitReplicas > 0 || s.o.WaitAOF }

// pipeliner is a client of one node.
type pipeliner interface {
	Pipeline() redis.Pipeliner
}

// runAndWait runs a script and waits, on the same connection, until its write has been confirmed as Options ask.
func (s *Store) runAndWait(ctx context.Context, sc *script, key string, args []any, patience time.Duration) ([]any, error) {
	var node pipeliner = s.client
	if s.cluster != nil {
		master, err := s.cluster.MasterForKey(ctx, key)
		if err != nil {
			return nil, err
		}
		node = master
	}
	for _, whole := range [...]bool{false, true} {
		pipe := node.Pipeline()
		cmd := sc.command(ctx, whole, key, args)
		_ = pipe.Process(ctx, cmd)
		ms := max(1, patience.Milliseconds())
		var wait *redis.Cmd
		if s.o.WaitAOF {
			wait = redis.NewCmd(ctx, "waitaof", 1, s.o.WaitReplicas, ms)
		} else {
			wait = redis.NewCmd(ctx, "wait", s.o.WaitReplicas, ms)
		}
		_ = pipe.Process(ctx, wait)
		_, err := pipe.Exec(ctx)
		if err == nil || isServerError(err) {
			err = cmd.Err() // each command has its own; that of the wait is judged below
		}
		if err != nil && hasCode(err, "NOSCRIPT") && !whole {
			continue
		}
		if err != nil {
			if s.cluster != nil && (hasCode(err, "MOVED ") || hasCode(err, "ASK ")) {
				s.cluster.ReloadState(ctx)
			}
			return nil, err
		}
		list, err := answer(cmd, nil)
		if err != nil || list[0] != "A" {
			return list, err
		}
		if err := wait.Err(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotReplicated, err)
		}
		return list, s.confirmed(wait.Val())
	}
	return nil, errors.New("redisstore: unreachable")
}

// confirmed judges the answer of WAIT or WAITAOF.
func (s *Store) confirmed(answer any) error {
	switch v := answer.(type) {
	case int64:
		if v >= int64(s.o.WaitReplicas) {
			return nil
		}
		return fmt.Errorf("%w: by %d of %d replicas", ErrNotReplicated, v, s.o.WaitReplicas)
	case []any:
		if len(v) == 2 {
			local, _ := v[0].(int64)
			replicas, _ := v[1].(int64)
			if local >= 1 && replicas >= int64(s.o.WaitReplicas) {
				return nil
			}
			return fmt.Errorf("%w: on %d of 1 disk, by %d of %d replicas", ErrNotReplicated, local, replicas, s.o.WaitReplicas)
		}
	}
	return fmt.Errorf("%w: WAIT answered %v", ErrNotReplicated, answer)
}
