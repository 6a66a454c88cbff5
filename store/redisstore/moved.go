package redisstore

import (
	"context"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"
)

// nobody says that no node has handed the slot over.
const nobody = "-"

// handedOver reports whether the slot of key was moved away, with all its keys, from a node of the cluster that has lost nothing:
// one that still runs as a primary under the replication id from, as it did when the namespace was last written, and has no key of
// the slot left. It is false where that can't be found out.
func (s *Store) handedOver(ctx context.Context, key, from string) bool {
	master, err := s.cluster.MasterForKey(ctx, key)
	if err != nil {
		return false
	}
	slot, err := s.cluster.ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return false
	}
	nodes, err := master.ClusterNodes(ctx).Result()
	if err != nil {
		return false
	}
	for _, addr := range otherMasters(nodes) {
		if s.gaveAway(ctx, *master.Options(), addr, int(slot), from) {
			return true
		}
	}
	return false
}

// gaveAway asks one node. A node that was drained has no slot, so the client does not know it: it is asked by a connection of
// its own.
func (s *Store) gaveAway(ctx context.Context, o redis.Options, addr string, slot int, from string) bool {
	o.Addr, o.PoolSize, o.MinIdleConns, o.MaxRetries = addr, 1, 0, -1
	o.ContextTimeoutEnabled = true
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout/4)
	defer cancel()
	c := redis.NewClient(&o)
	defer c.Close()
	pipe := c.Pipeline()
	replication, left := pipe.Info(ctx, "replication"), pipe.ClusterCountKeysInSlot(ctx, slot)
	if _, err := pipe.Exec(ctx); err != nil {
		return false
	}
	info := replication.Val()
	return infoField(info, "role") == "master" && infoField(info, "master_replid") == from && left.Val() == 0
}

// otherMasters reads the answer of CLUSTER NODES: the addresses of the primaries that answer, without the node that was asked.
func otherMasters(nodes string) []string {
	var out []string
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line) // id, ip:port@bus[,name], flags, ...
		if len(fields) < 3 {
			continue
		}
		flags := "," + fields[2] + ","
		if !strings.Contains(flags, ",master,") || strings.Contains(flags, ",myself,") || strings.Contains(flags, ",fail") || strings.Contains(flags, ",noaddr,") {
			continue
		}
		addr, _, _ := strings.Cut(fields[1], "@")
		at := strings.LastIndexByte(addr, ':')
		if at <= 0 {
			continue
		}
		out = append(out, net.JoinHostPort(addr[:at], addr[at+1:]))
	}
	return out
}
