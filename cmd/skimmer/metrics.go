package main

import (
	"slices"

	"skimmer/internal/peer"
	"skimmer/internal/swarm"
	"skimmer/internal/telemetry"
	"skimmer/internal/transfer"
)

// peerMetrics are the node's counters as Prometheus reads them.
func peerMetrics(p *peer.Peer) []telemetry.Value {
	o := p.OriginStats()
	return slices.Concat(swarmMetrics(p), mirrorMetrics(p), []telemetry.Value{
		{Name: "origin_requests_total", Help: "HTTP requests made to registries and their storage.", Load: o.Requests.Load},
		{Name: "origin_bytes_total", Help: "Bytes received from registries and their storage.", Load: o.Bytes.Load},
		{Name: "origin_retries_total", Help: "Requests made again after one that failed.", Load: o.Retries.Load},
		{Name: "origin_token_fetches_total", Help: "Tokens fetched from token services.", Load: o.TokenFetches.Load},
		{Name: "store_hit_bytes_total", Help: "Bytes of blobs served from disk.", Load: func() int64 { return p.StoreStats().HitBytes }},
		{Name: "store_fetched_bytes_total", Help: "Bytes of blobs fetched and kept.", Load: func() int64 { return p.StoreStats().FetchedBytes }},
		{Name: "store_passed_bytes_total", Help: "Bytes of blobs passed on without being kept.", Load: func() int64 { return p.StoreStats().PassedBytes }},
		{Name: "store_evicted_bytes_total", Help: "Bytes of blobs removed to make space.", Load: func() int64 { return p.StoreStats().EvictedBytes }},
		{Name: "store_damaged_pieces_total", Help: "Pieces found damaged on disk.", Load: func() int64 { return p.StoreStats().CRCFailures }},
		{Name: "store_wrong_blobs_total", Help: "Blobs whose content was not what their digest says.", Load: func() int64 { return p.StoreStats().DigestFailures }},
		{Name: "store_bytes", Help: "Bytes of blobs on disk.", Load: func() int64 { return p.StoreStats().Used }},
		{Name: "layer_faults_total", Help: "Reads of mounted images that had to wait for data.", Load: func() int64 { return p.LayerStats().Faults }},
		{Name: "layer_fault_wait_nanoseconds_total", Help: "Time those reads waited.", Load: func() int64 { return int64(p.LayerStats().Waited) }},
		{Name: "layer_fetched_bytes_total", Help: "Compressed bytes read for mounted images.", Load: func() int64 { return p.LayerStats().Fetched }},
		{Name: "layer_inflated_bytes_total", Help: "Bytes of file content verified and kept.", Load: func() int64 { return p.LayerStats().Inflated }},
		{Name: "layer_read_bytes_total", Help: "Bytes of file content that readers wanted, each chunk once; inflated bytes by these is the read amplification.", Load: func() int64 { return p.LayerStats().Used }},
		{Name: "layer_corrupt_streams_total", Help: "Streams whose content was not what the image promises.", Load: func() int64 { return p.LayerStats().Corrupt }},
		{Name: "layer_timeouts_total", Help: "Reads that failed because data did not come in time.", Load: func() int64 { return p.LayerStats().Timeouts }},
		{Name: "layer_outages_total", Help: "Times that missing data could not be fetched and readers had to wait for it to be.", Load: func() int64 { return p.LayerStats().Outages }},
		{Name: "layer_retries_total", Help: "Fetches of missing data tried again while readers waited.", Load: func() int64 { return p.LayerStats().Retries }},
		{Name: "layer_errors_total", Help: "Fetches and reads of mounted images that failed.", Load: func() int64 { return p.LayerStats().Errors }},
	})
}

// mirrorMetrics are the counters of the registry mirror and the forward proxy;
// all are 0 where there is none.
func mirrorMetrics(p *peer.Peer) []telemetry.Value {
	m, f := p.MirrorStats()
	return []telemetry.Value{
		{Name: "mirror_requests_total", Help: "Requests to the registry mirror.", Load: m.Requests.Load},
		{Name: "mirror_failed_total", Help: "Requests to it that ended with a status of 500 or more, or broken off.", Load: m.Failed.Load},
		{Name: "mirror_blob_bytes_total", Help: "Bytes of blobs it served from this node and its peers.", Load: m.BlobBytes.Load},
		{Name: "mirror_manifests_total", Help: "Manifests it had already.", Load: m.Manifests.Load},
		{Name: "mirror_passed_total", Help: "Requests it passed to a registry as they were.", Load: m.Passed.Load},
		{Name: "mirror_fallbacks_total", Help: "Requests of those that this node could not answer.", Load: m.Fallbacks.Load},
		{Name: "mirror_asked_total", Help: "Times a registry was asked whether a client may read something.", Load: m.Asked.Load},
		{Name: "mirror_graced_total", Help: "Times a registry could not be asked and an earlier answer counted.", Load: m.Graced.Load},
		{Name: "mirror_prefetched_total", Help: "Blobs whose rest was fetched ahead.", Load: m.Prefetched.Load},
		{Name: "mirror_ahead_total", Help: "Parts of blobs fetched because a manifest foretold that they would be read.", Load: m.Ahead.Load},
		{Name: "proxy_requests_total", Help: "Requests to the forward proxy.", Load: f.Requests.Load},
		{Name: "proxy_refused_total", Help: "Requests of those that were not allowed.", Load: f.Refused.Load},
		{Name: "proxy_tunnel_bytes_total", Help: "Bytes its tunnels carried, both ways.", Load: f.TunnelBytes.Load},
	}
}

// swarmMetrics are the counters of the exchange with other nodes; all are 0
// where there is none.
func swarmMetrics(p *peer.Peer) []telemetry.Value {
	value := func(name, help string, of func(swarm.Stats, transfer.ServerStats, transfer.ClientStats) int64) telemetry.Value {
		return telemetry.Value{Name: "swarm_" + name, Help: help, Load: func() int64 { return of(p.SwarmStats()) }}
	}
	took := func(name, help string, of func(swarm.Stats) int64) telemetry.Value {
		return value(name, help, func(s swarm.Stats, _ transfer.ServerStats, _ transfer.ClientStats) int64 { return of(s) })
	}
	gave := func(name, help string, of func(transfer.ServerStats) int64) telemetry.Value {
		return value(name, help, func(_ swarm.Stats, s transfer.ServerStats, _ transfer.ClientStats) int64 { return of(s) })
	}
	return []telemetry.Value{
		took("peer_bytes_total", "Bytes taken from peers that were right.", func(s swarm.Stats) int64 { return s.PeerBytes }),
		took("origin_bytes_total", "Bytes of blobs read from origins.", func(s swarm.Stats) int64 { return s.OriginBytes }),
		gave("served_bytes_total", "Bytes sent to other nodes.", func(s transfer.ServerStats) int64 { return s.Bytes }),
		gave("served_relayed_bytes_total", "Bytes of those that were sent on as they came, before they were on disk.", func(s transfer.ServerStats) int64 { return s.Relayed }),
		took("served_from_origin_total", "Ranges read from origins for nodes without a scheduler.", func(s swarm.Stats) int64 { return s.ForOthers }),
		took("corrupt_sources_total", "Times a peer sent wrong bytes.", func(s swarm.Stats) int64 { return s.Corrupt }),
		took("peer_failures_total", "Times a peer failed otherwise.", func(s swarm.Stats) int64 { return s.PeerFailures }),
		took("origin_failures_total", "Leases to read from an origin that failed.", func(s swarm.Stats) int64 { return s.OriginFailures }),
		took("hedges_total", "Second sources asked because the first took long.", func(s swarm.Stats) int64 { return s.Hedges }),
		took("revoked_total", "Grants, or parts of them, that the scheduler took back.", func(s swarm.Stats) int64 { return s.Revoked }),
		took("parked_total", "Wants that had to wait.", func(s swarm.Stats) int64 { return s.Parked }),
		took("rejected_total", "Times a reader found wrong what had the right digest.", func(s swarm.Stats) int64 { return s.Rejected }),
		took("forgotten_total", "Times others found wrong what is kept here.", func(s swarm.Stats) int64 { return s.Forgotten }),
		took("without_scheduler_total", "Reads that had to do without a scheduler.", func(s swarm.Stats) int64 { return s.WithoutScheduler }),
		took("without_seeds_total", "Reads that had to do without seeds too.", func(s swarm.Stats) int64 { return s.WithoutSeeds }),
		took("schedulers_up", "Schedulers that are connected.", func(s swarm.Stats) int64 { return s.Schedulers }),
		took("blobs_in_use", "Blobs that are open.", func(s swarm.Stats) int64 { return s.Fetching }),
		gave("uploads", "Uploads under way.", func(s transfer.ServerStats) int64 { return s.Uploads }),
		gave("upload_connections", "Connections of other nodes.", func(s transfer.ServerStats) int64 { return s.Conns }),
		gave("upload_requests_total", "Requests of other nodes.", func(s transfer.ServerStats) int64 { return s.Requests }),
		gave("uploads_busy_total", "Requests of other nodes answered that this one is busy.", func(s transfer.ServerStats) int64 { return s.Busy }),
		gave("uploads_refused_total", "Requests and connections refused.", func(s transfer.ServerStats) int64 { return s.Refused }),
		gave("uploads_failed_total", "Uploads that failed.", func(s transfer.ServerStats) int64 { return s.Failed }),
		value("busy_answers_total", "Answers of peers that they are busy.",
			func(_ swarm.Stats, _ transfer.ServerStats, s transfer.ClientStats) int64 { return s.Busy }),
	}
}
