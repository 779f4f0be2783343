"""Mappings of public logs: each reads a small log that is written in exactly its layout."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadre.data.sources import mapping
from leadre.data.tables import Tables
from leadre.errors import InputError
from tests.data.conftest import read_folder

ROWS = 60  # of a log; every second is a success, by user n % 6 on ad n % 4
START = datetime(2014, 10, 21, tzinfo=UTC)


def at(n: int) -> datetime:
    return START + timedelta(hours=n)


def text(folder: Path, name: str, header: str, rows: list[str]) -> None:
    content = "".join(line + "\n" for line in ([header] if header else []) + rows)
    data = content.encode()
    pack = gzip.compress if name.endswith(".gz") else bz2.compress if name.endswith(".bz2") else bytes
    (folder / name).write_bytes(pack(data))


def movielens(folder: Path) -> None:
    text(folder, "movies.csv", "movieId,title,genres", [f'{n},"Film, the {n} (1995)",Drama|Comedy' for n in range(4)])
    rows = [f"{n % 6},{n % 4},{4.5 if n % 2 else 2.0},{int(at(n).timestamp())}" for n in range(ROWS)]
    text(folder, "ratings.csv", "userId,movieId,rating,timestamp", rows[::-1])


def movielens_recbole(folder: Path) -> None:
    items = [f'{n}\t"Film" {n}\t1995\tDrama Comedy' for n in range(4)]
    text(folder, "ml.item", "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", items)
    users = [f"{n}\t24\tM\twriter\t0{n}000" for n in range(6)]
    text(folder, "ml.user", "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", users)
    rows = [f"{n % 6}\t{n % 4}\t{4 if n % 2 else 2}\t{at(n).timestamp()}" for n in range(ROWS)]
    text(folder, "ml.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", rows)


def criteo_attribution(folder: Path) -> None:
    header = "timestamp uid campaign conversion conversion_timestamp conversion_id attribution click click_pos click_nb"
    header += " cost cpo time_since_last_click " + " ".join(f"cat{n}" for n in range(1, 10))
    rows = []
    for n in range(ROWS):
        success = n % 2
        rows.append([n * 3600, n % 6, n % 4, success, n * 3600 + 60 if success else -1, n, success, success, -1, -1])
        rows[-1] += [0.1, 0.2, -1, *range(9)]
    lines = ["\t".join(map(str, row)) for row in rows]
    text(folder, "criteo_attribution_dataset.tsv.gz", header.replace(" ", "\t"), lines)


def taobao(folder: Path) -> None:
    text(
        folder,
        "ad_feature.csv",
        "adgroup_id,cate_id,campaign_id,customer,brand,price",
        [f"{n},7,8,9,NULL,{n}.5" for n in range(4)],
    )
    header = "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
    text(folder, "user_profile.csv", header + "new_user_class_level ", [f"{n},0,5,2,5,,3,0,3" for n in range(6)])
    rows = [f"{n % 6},{int(at(n).timestamp())},{n % 4},430548_1007,{1 - n % 2},{n % 2}" for n in range(ROWS)]
    text(folder, "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", rows)


def ipinyou(folder: Path) -> None:
    for name, kind in (("imp", 1), ("clk", 2), ("conv", 3)):
        rows = []
        for n in range(ROWS):
            if kind == 1 or n % 2:
                time = (at(n) + timedelta(hours=8, seconds=kind)).strftime("%Y%m%d%H%M%S") + "123"
                row = [f"b{n}", time, kind, f"u{n % 6}", 'Mozilla "5"', "1.2.3.*", 1, 2, 1, "d", "u", "null", "slot1"]
                rows.append([*row, 300, 250, 1, 0, 5, f"c{n % 4}", 300, 50, "page", 1458, "10006,10110"])
        text(folder, f"{name}.20141021.txt.bz2", "", ["\t".join(map(str, row)) for row in rows])


def mind(folder: Path) -> None:
    news = [f'N{n}\tsports\tsoccer\t"Goal" says {n}\tAbstract\thttps://x\t[]\t[]' for n in range(4)]
    text(folder, "news.tsv", "", news)
    rows = []
    for n in range(ROWS):
        time = at(n).strftime("%m/%d/%Y %I:%M:%S %p").lstrip("0").replace("/0", "/")
        shown = " ".join(f"N{k}-{int(k == n % 4 and n % 2)}" for k in range(4))
        rows.append(f"{n}\tU{n % 6}\t{time}\tN1 N2\t{shown}")
    text(folder, "behaviors.tsv", "", rows)


def kuairand(folder: Path) -> None:
    text(
        folder,
        "video_features_basic_pure.csv",
        "video_id,author_id,video_type,upload_dt,tag",
        [f'{n},5,NORMAL,2022-04-01,"12,65"' for n in range(4)],
    )
    users = [f"{n},full_active,0,[1,10)".replace("[1,10)", '"[1,10)"') for n in range(6)]
    text(folder, "user_features_pure.csv", "user_id,user_active_degree,is_lowactive_period,fans_user_num_range", users)
    header = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,tab"
    rows = [f"{n % 6},{n % 4},20220408,1200,{int(at(n).timestamp() * 1000)},{n % 2},{n % 2},1" for n in range(ROWS)]
    text(folder, "log_standard_4_08_to_4_21_pure.csv", header, rows)


def tenrec(folder: Path) -> None:
    header = "user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age"
    rows = [f"{n % 6},{n % 4},{n % 2},0,{n % 2},0,1,{n % 2},1,3" for n in range(ROWS)]
    text(folder, "ctr_data_1M.csv", header, rows)


def avazu(folder: Path) -> None:
    header = "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,"
    header += "device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    rows = []
    for n in range(ROWS):
        row = [10**18 + n, n % 2, at(n).strftime("%y%m%d%H"), 1005, 0, "s", "d", "c", "a", "ad", "ac", "a99f214a"]
        rows.append([*row, f"ip{n % 6}", "m", 1, 0, n % 4, 320, 50, 1722, 0, 35, -1, 79])
    text(folder, "train.gz", header, [",".join(map(str, row)) for row in rows])
    (folder / "train.gz").rename(folder / "train.csv.gz")


def hm(folder: Path) -> None:
    header = "article_id,prod_name,product_type_name,product_group_name,colour_group_name,index_group_name,detail_desc"
    text(
        folder,
        "articles.csv",
        header,
        [f'010877501{n},Strap top,Vest,Upper,Black,Ladies,"Top, narrow"' for n in range(4)],
    )
    header = "customer_id,FN,Active,club_member_status,fashion_news_frequency,age,postal_code"
    text(folder, "customers.csv", header, [f"u{n},,,ACTIVE,NONE,49,52043" for n in range(6)])
    rows = [f"{at(24 * n):%Y-%m-%d},u{n % 6},010877501{n % 4},0.0508305084745762,2" for n in range(ROWS)]
    text(folder, "transactions_train.csv", "t_dat,customer_id,article_id,price,sales_channel_id", rows)


def retailrocket(folder: Path) -> None:
    rows = []
    for n in range(ROWS):
        kinds = ("view", "addtocart", "transaction") if n % 2 else ("view",)
        rows += [
            f"{int(at(n).timestamp() * 1000)},{n % 6},{kind},{n % 4},{n if 'trans' in kind else ''}" for kind in kinds
        ]
    text(folder, "events.csv", "timestamp,visitorid,event,itemid,transactionid", rows[::-1])


def amazon_2023(folder: Path) -> None:
    meta = []
    for n in range(4):
        row = {
            "main_category": "All Beauty",
            "title": f"Soap {n}",
            "average_rating": 4.8,
            "features": [],
            "price": None,
        }
        row |= {"images": [{"thumb": "x"}], "store": "Yes", "categories": ["Beauty", "Soap"], "details": {"Size": "1"}}
        meta.append(json.dumps(row | {"price": [None, 9.99, "—", "12.5"][n], "parent_asin": f"B{n}"}))
    text(folder, "meta_All_Beauty.jsonl.gz", "", meta)
    rows = []
    for n in range(ROWS):
        row = {
            "rating": 5.0 if n % 2 else 2.0,
            "title": "x",
            "text": "y",
            "images": [],
            "asin": f"A{n}",
            "helpful_vote": 0,
        }
        row |= {"parent_asin": f"B{n % 4}", "user_id": f"U{n % 6}", "timestamp": int(at(n).timestamp() * 1000)}
        rows.append(json.dumps(row | {"verified_purchase": True}))
    text(folder, "All_Beauty.jsonl", "", rows[::-1])


def open_bandit(folder: Path) -> None:
    text(
        folder,
        "item_context.csv",
        ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3",
        [f"{n},{n},-0.5,a{n},b,c" for n in range(4)],
    )
    header = (
        ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3"
    )
    rows = [
        f"{n},{at(n):%Y-%m-%d %H:%M:%S}.004101+00:00,{n % 4},{n % 3 + 1},{n % 2},0.0125,f{n % 6},a,b,c"
        for n in range(ROWS)
    ]
    text(folder, "all.csv", header, rows)


ITEM_FEATURES = ("100", "101", "102", "112", "114", "115", "116", "117", "118", "119", "120", "121", "122")


def tencentgr(folder: Path) -> None:
    (folder / "seq_offsets.pkl").write_bytes(b"no pickle")
    lines = []
    for user in range(6):
        profile = {"103": 86, "104": 2, "105": 7, "106": [14, 15, 11], "107": [19], "108": [4], "109": 1, "110": [2]}
        records: list[list[Any]] = [[user, None, profile, None, None, int(START.timestamp())]]
        for n in range(user, ROWS, 6):
            features = dict.fromkeys(ITEM_FEATURES[: 13 - n % 2], n % 4)
            records.append([user, n % 4, None, features, n % 2, int(at(n).timestamp())])
        lines.append(json.dumps(records))
    text(folder, "seq.jsonl", "", lines)


def tencentgr_parquet(folder: Path) -> None:
    for name in ("seq", "user_feat", "item_feat"):
        (folder / name).mkdir()
    (folder / "indexer.pkl").write_bytes(b"no pickle")
    items = [{"item_id": n} | {name: n if n or name != "115" else None for name in ITEM_FEATURES} for n in range(4)]
    pl.DataFrame(items[::-1]).write_parquet(folder / "item_feat" / "part-0.parquet")
    users = [
        {
            "user_id": n,
            "103": 86,
            "104": 2,
            "105": 7,
            "106": [14, 15, 11],
            "107": [19],
            "108": [4],
            "109": 1,
            "110": [2],
        }
        for n in range(6)
    ]
    pl.DataFrame(users).write_parquet(folder / "user_feat" / "part-0.parquet")
    for user in range(6):
        records = [
            {"item_id": n % 4, "action_type": 2 * (n % 2), "timestamp": int(at(n).timestamp())}
            for n in range(user, ROWS, 6)
        ]
        pl.DataFrame({"user_id": [user], "seq": [records]}).write_parquet(folder / "seq" / f"part-{user}.parquet")


LOGS: dict[str, Callable[[Path], None]] = {
    "movielens": movielens,
    "movielens-recbole": movielens_recbole,
    "criteo-attribution": criteo_attribution,
    "taobao": taobao,
    "ipinyou": ipinyou,
    "mind": mind,
    "kuairand": kuairand,
    "tenrec": tenrec,
    "avazu": avazu,
    "hm": hm,
    "retailrocket": retailrocket,
    "amazon-2023": amazon_2023,
    "open-bandit": open_bandit,
    "tencentgr": tencentgr,
    "tencentgr-parquet": tencentgr_parquet,
}


def test_every_layout_has_a_log() -> None:
    assert sorted(LOGS) == mapping.layouts()


def of_layout(name: str, folder: Path) -> Tables:
    LOGS[name](folder)
    return read_folder(folder, layout=name, positive="conversion" if name == "hm" else "click", max_bad_share=0.0)


@pytest.mark.parametrize("name", LOGS)
def test_layout_reads_its_log(name: str, tmp_path: Path) -> None:
    tables = of_layout(name, tmp_path)
    assert tables.ads.height == 4 and tables.ads["title"].str.len_chars().min() >= 3
    assert tables.users.height == 6
    events = tables.events.filter(domain="ad")
    successes = events.filter(action="conversion" if name == "hm" else "click")
    everything = name in ("hm", "movielens", "movielens-recbole", "amazon-2023")  # each row is a success
    assert successes.height == (ROWS if everything else ROWS // 2)
    if "conversion" in set(events["action"]) and name != "hm":
        assert events.filter(action="conversion").height == ROWS // 2
    if "impression" in set(events["action"]):
        assert events.filter(action="impression").height == (4 * ROWS if name == "mind" else ROWS)
    assert tables.requests.height == successes["request_id"].n_unique()
    assert tables.requests.height + tables.empty_requests.height == events["request_id"].n_unique()


def test_values_of_layouts(tmp_path: Path) -> None:
    """Titles with quotes, zones, calendars, origins, prices and lists."""
    read: dict[str, Tables] = {}
    for name in LOGS:
        (tmp_path / name).mkdir()
        read[name] = of_layout(name, tmp_path / name)
    first = {name: tables.events["at"].min() for name, tables in read.items()}
    exact = dict.fromkeys(LOGS, START) | {
        "criteo-attribution": datetime(2020, 1, 1, tzinfo=UTC),
        "tenrec": datetime(2020, 1, 1, 0, 0, 1, tzinfo=UTC),
        "ipinyou": START + timedelta(seconds=1, milliseconds=123),
        "open-bandit": START + timedelta(microseconds=4101),
    }
    assert first == exact
    for name in ("tencentgr", "tencentgr-parquet"):
        assert read[name].ads.sort("ad_id")["title"][2].startswith("ad f100-2 f101-2 f102-2 f112-2")
        assert read[name].users["f106"].to_list() == ["14, 15, 11"] * 6
    assert read["mind"].ads["title"][0] == '"Goal" says 0'
    assert read["movielens"].ads["category_path"][0].to_list() == ["Drama", "Comedy"]
    assert read["movielens-recbole"].users["zip_code"][0] == "00000"
    assert read["taobao"].ads["price_nanos"][1] == 1_500_000_000 and read["taobao"].ads["brand"][0] is None
    assert read["amazon-2023"].ads["price_nanos"].to_list() == [None, 9_990_000_000, None, 12_500_000_000]
    assert read["hm"].events["value_nanos"][0] == 50_830_508
    assert read["hm"].ads["ad_id"][0] == "0108775010"
    assert read["criteo-attribution"].events.filter(action="conversion")["at"].min() == datetime(
        2020, 1, 1, 1, 1, tzinfo=UTC
    )


def test_unknown_layout_lists_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--layout '\?': no such layout.*amazon-2023, avazu.*taobao"):
        read_folder(tmp_path, layout="?")
