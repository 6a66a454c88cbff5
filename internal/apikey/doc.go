// Package apikey keeps API keys: what a store holds of them, what a process knows of those that were presented to it, and how
// those of another program are recognised and taken over.
//
// It owns the records of keys, the limits of what stands in one, how many a subject may have, and the hashes by which keys are
// known. It promises that a known key is found without I/O, and that what this service did not make ends without a read of the
// store; that a key whose record changed is known by the new one before the follower reads on, with the counts of its uses; that
// many who present an unknown key cause one read; and that another program's hash of a key is needed until the first use of the
// key, and never after.
//
// It has no lock but those of flightcache's shards, which are leaves; whoever checks a slow hash of a host's waits for one of a
// few places, with none held. Cache.Apply runs in the follower's turn: nothing that it calls asks the store. Whoever gives out a
// key asks for its rule (Key.Hit) after reading the view, and for its end after that.
//
// The root's APIKeys calls it, and decides who may make which keys; so do validators without a store, of which only Forms are
// used. It stands on commit, flightcache, usage, quota and opaque.
package apikey
